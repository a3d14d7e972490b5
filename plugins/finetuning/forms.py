"""The requests of the fine-tuning endpoints.  Source: OpenAI's API reference, "Fine-tuning"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from proxy.config import Strict
from proxy.errors import BadCall

METADATA: Final = "metadata"
EPOCHS, BATCH, RATE = 3, 4, 1e-4
"""The values of `auto`.  RATE: the learning rate at a multiplier of 1."""


def _sane(text: str) -> str:
    if "\0" in text:  # PostgreSQL rejects it
        raise ValueError("it can be no such thing")
    return text


def _nothing(given: object) -> object:
    if given:
        raise ValueError("integrations are not supported")
    return given


Id = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_sane)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=350), AfterValidator(_sane)]
Suffix = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_sane)]
Value = Annotated[str, StringConstraints(max_length=512), AfterValidator(_sane)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_sane)]
Metadata = Annotated[dict[Label, Value], Field(max_length=16)]


def between(kind: type[int] | type[float], low: float, high: float) -> AfterValidator:
    """Validates `auto`, or a number of this kind within the bounds."""
    noun = "a whole number" if kind is int else "a number"

    def check(given: Any) -> Any:
        fits = type(given) is int or (type(given) is float and kind is float)
        if given != "auto" and not (fits and low <= given <= high):
            raise ValueError(f"it is 'auto' or {noun} from {low:g} to {high:g}")
        return given

    return AfterValidator(check)


class Hyper(Strict):
    n_epochs: Annotated[Any, between(int, 1, 50)] = "auto"
    batch_size: Annotated[Any, between(int, 1, 1024)] = "auto"
    learning_rate_multiplier: Annotated[Any, between(float, 0.0001, 1000)] = "auto"

    def settled(self) -> dict[str, int | float]:
        """All values as numbers."""
        epochs, batch, rate = self.n_epochs, self.batch_size, self.learning_rate_multiplier
        return {
            "n_epochs": EPOCHS if isinstance(epochs, str) else epochs,
            "batch_size": BATCH if isinstance(batch, str) else batch,
            "learning_rate_multiplier": 1.0 if isinstance(rate, str) else float(rate),
        }


class Supervised(Strict):
    hyperparameters: Hyper | None = None


class Method(Strict):
    """type: OpenAI's other methods, `dpo` and `reinforcement`, would need other trainers."""

    type: Literal["supervised"]
    supervised: Supervised | None = None


class CreateJob(Strict):
    model: Name
    training_file: Id
    validation_file: Id | None = None
    suffix: Suffix | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    hyperparameters: Hyper | None = None
    method: Method | None = None
    metadata: Metadata | None = None
    integrations: Annotated[Any, AfterValidator(_nothing)] = None

    def hyper(self) -> Hyper:
        """The hyperparameters of the method if it has any, else those of the deprecated field."""
        own = self.method.supervised.hyperparameters if self.method and self.method.supervised else None
        return own or self.hyperparameters or Hyper()


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which part of a list.  metadata: pairs that all listed jobs must have."""

    after: str | None
    limit: int
    metadata: Mapping[str, str]


class Page(Strict):
    after: Id | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class JobPage(Page):
    """`metadata[name]=value` may be given several times."""

    model_config = ConfigDict(extra="allow")

    metadata: Literal["null", ""] | None = None

    def wanted(self) -> Wanted:
        """Raises BadCall for an unknown field."""
        pairs: dict[str, str] = {}
        for name, value in (self.model_extra or {}).items():
            if not name.startswith(f"{METADATA}[") or not name.endswith("]"):
                raise BadCall(f"Unknown parameter: '{name[:100]}'.", param=name[:100], code="unknown_parameter")
            pairs[name[len(METADATA) + 1 : -1]] = str(value)
        return Wanted(self.after, self.limit, pairs)


class Check(Strict):
    file_id: Id
