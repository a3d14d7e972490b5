"""The definition of an experiment, as it is written in YAML or JSON, and its validation."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Annotated, Any, Final, Literal, TypeAlias

import orjson
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from proxy.config import Strict
from proxy.errors import BadCall
from proxy.types import JSON
from proxy.wire.openai_fields import SAMPLING

PREFIX: Final = "exp_"
"""Prefix of ids."""
NAME: Final = re.compile(rf"(?!{PREFIX})[a-z][a-z0-9_-]{{0,63}}")
LARGEST: Final = 262_144
"""Maximum size of a definition as JSON, in bytes."""
Unit: TypeAlias = Literal["user", "caller", "conversation", "request"]
Status: TypeAlias = Literal["draft", "active", "paused", "stopped"]
Sense: TypeAlias = Literal["higher", "lower"]
SENSES: Final[dict[str, Sense | None]] = {
    "errors": "lower",
    "seconds": "lower",
    "first_seconds": "lower",
    "completion_tokens": None,
    "cost": "lower",
    "cached": None,
    "up": "higher",
    "down": "lower",
}
"""The metrics of every call and whether higher or lower is better; None if neither is."""


def check_name(name: str) -> str:
    """Raises ValueError if this cannot be a name."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name[:100]!r} cannot be a name: up to 64 of a-z, 0-9, '-' and '_', a letter first, not '{PREFIX}'"
        )
    return name


def _model(name: str) -> str:
    if name.startswith(("experiment:", "template:")):
        raise ValueError("`model` is the name of a model; a template belongs under `template`")
    return name


def _list(given: object) -> object:
    return (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list) else given


def _named(given: object) -> object:
    return {"name": given} if isinstance(given, str) else given


def _parameters(given: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError for an option or a value that a chat would not accept."""
    for name, value in given.items():
        if name not in SAMPLING:
            raise ValueError(f"{name[:80]!r} is not one of {', '.join(SAMPLING)}")
        try:
            SAMPLING[name](value, name)
        except (BadCall, KeyError) as error:
            raise ValueError(str(error)) from None
    return given


Name = Annotated[str, AfterValidator(check_name)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
Patterns = Annotated[
    tuple[Text, ...],
    BeforeValidator(_list),
    Field(max_length=100),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class Template(Strict):
    """A prompt template that a variant uses in place of the caller's."""

    name: Text
    """What it is called."""
    version: int | Text | None = None
    """A number or an alias; if unset, the newest."""


class Variant(Strict):
    """A variant; what it does not name stays as in the call."""

    name: Name
    """Its name in headers, records and results."""
    weight: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Its share, relative to the other variants' weights."""
    model: Annotated[Text, AfterValidator(_model)] | None = None
    """The model that answers."""
    template: Annotated[Template | None, BeforeValidator(_named)] = None
    """The prompt template, as a name or `{name, version}`; for chats only, and `templates` must come later in the
    chain."""
    system: Annotated[str, StringConstraints(max_length=65_536, pattern=r"^[^\x00]*$")] | None = None
    """Replaces the caller's system message; for chats only."""
    parameters: Annotated[dict[str, Any], AfterValidator(_parameters)] = {}  # noqa: RUF012  (pydantic copies defaults)
    """Sampling options, such as `temperature` and `max_tokens`; they override the caller's own."""

    @property
    def is_for_chats(self) -> bool:
        return self.template is not None or self.system is not None


class Match(Strict):
    """Calls that match all of these; each is a pattern such as `gemma*`, or a list of which one must match."""

    models: Patterns = ()
    """Models, as the call names them."""
    routes: Patterns = ()
    """Chains; if unset, all but `internal`."""
    callers: Patterns = ()
    """Names of callers."""


class Guard(Strict):
    """Stops a variant that is certainly worse than the control; its units get the control from then on."""

    metric: Name = "errors"
    """What is looked at."""
    worse_by: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """By how much it must be worse, in the metric's own unit: 0.05 of `errors` is five calls in a hundred."""


class Definition(Strict):
    """What is tried, on which calls.  The first variant is the control."""

    description: Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00]*$")] = ""
    """What it is for."""
    variants: Annotated[tuple[Variant, ...], BeforeValidator(_list), Field(min_length=2, max_length=10)]
    """The variants; the first is the control, with which all others are compared, and may change nothing."""
    match: Match = Match()
    """Which calls take part; a call that names the experiment does anyway."""
    unit: Unit = "user"
    """What always gets the same variant: the `user` (or `safety_identifier`) of the call, the `caller`, the
    `conversation`, or each `request` by itself."""
    traffic: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of units that take part."""
    salt: Annotated[str, StringConstraints(max_length=64, pattern=r"^[^\x00]*$")] = ""
    """A different one reassigns all units; if unset, the experiment's name."""
    better: Annotated[dict[Name, Sense], Field(max_length=30)] = {}  # noqa: RUF012  (pydantic copies defaults)
    """For each metric of your own, whether `higher` or `lower` is better."""
    guard: Guard | None = None
    """Stops variants that do harm."""

    @model_validator(mode="after")
    def _consistent(self) -> Definition:
        if len(orjson.dumps(self.as_json())) > LARGEST:
            raise ValueError(f"an experiment has at most {LARGEST} bytes")
        return self

    @field_validator("variants")
    @classmethod
    def _distinct(cls, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        names = [one.name for one in variants]
        if len(set(names)) < len(names):
            raise ValueError("two variants have the same name")
        return variants

    @field_validator("guard")
    @classmethod
    def _sensible(cls, guard: Guard | None, info: ValidationInfo) -> Guard | None:
        better = info.data.get("better")  # which is not there if it is wrong itself
        if guard is not None and better is not None and better.get(guard.metric, SENSES.get(guard.metric)) is None:
            raise ValueError(f"set under `better` whether {guard.metric!r} should be higher or lower")
        return guard

    @property
    def control(self) -> Variant:
        return self.variants[0]

    @property
    def is_for_chats(self) -> bool:
        return any(one.is_for_chats for one in self.variants)

    def sense(self, metric: str) -> Sense | None:
        return self.better.get(metric, SENSES.get(metric))

    def as_json(self) -> dict[str, JSON]:
        """As JSON, without fields that have their default value."""
        whole: dict[str, JSON] = self.model_dump(mode="json", exclude_defaults=True)
        return whole

    def bare(self) -> Definition:
        """Only the fields of a Definition, without those that a subclass adds."""
        return Definition.model_construct(**{name: getattr(self, name) for name in Definition.model_fields})

    def digest(self) -> str:
        """A hash of every field that affects the results."""
        free = ("description", "better", "guard", "traffic")
        kept = {name: value for name, value in self.as_json().items() if name not in free}
        return sha256(orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


class InFile(Definition):
    """An experiment in the configuration."""

    status: Status = "active"
    """In all states but `active` no call takes part."""
