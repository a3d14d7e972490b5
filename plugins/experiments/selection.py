"""Which experiment a call names explicitly, and how a variant changes a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from plugins.experiments.definition import Variant
from proxy.errors import BadCall
from proxy.types import JSON, Ask, Call, Chat, Complete, Message
from proxy.wire import read
from proxy.wire.openai_fields import SAMPLING

NAMES: Final = "experiment:"
FIELD: Final = "experiment"
TEMPLATE: Final = "template"
TEMPLATES: Final = f"{TEMPLATE}:"
OWN_MODEL: Final = "own_model"
OWN_SYSTEM: Final = "own_system"
"""Tags: what the caller asked for before a variant replaced it.  Plugins that remember a caller's choices use these,
because a variant's choices must not outlive the experiment."""
VARIANTS_TEMPLATE: Final = "variants_template"
"""Tag: the name of a variant's template, whose messages are not the caller's choice either."""


@dataclass(frozen=True, slots=True)
class Selection:
    """variant: the requested one; None means the unit's own.  param: the field that names the experiment."""

    name: str
    variant: str | None = None
    param: str = "experiment.name"


def selection_of(call: Call) -> Selection | None:
    """From the model's name, `experiment:NAME`, and the field `experiment`.  Raises BadCall."""
    named = call.model[len(NAMES) :] if call.model.startswith(NAMES) else None
    given = call.extra.get(FIELD) if call.extra else None
    if given is None:
        return None if named is None else Selection(read.filled(named, "model"), None, "model")
    told = {"name": given} if isinstance(given, str) else read.mapping(given, FIELD)
    for key in told:
        if key not in ("name", "variant"):
            unknown = f"{FIELD}.{key[:80]}"
            raise BadCall(f"Unknown parameter: '{unknown}'.", param=unknown, code="unknown_parameter")
    variant = None if told.get("variant") is None else read.filled(told["variant"], f"{FIELD}.variant")
    if named is not None:
        if told.get("name") not in (None, named):
            message = "'model' and 'experiment.name' name two experiments; send only one of them."
            raise BadCall(message, param="experiment.name", code="invalid_parameter_combination")
        return Selection(read.filled(named, "model"), variant, "model")
    return Selection(read.filled(read.needed(told, "name", f"{FIELD}.name"), f"{FIELD}.name"), variant)


def changed(call: Call, variant: Variant) -> Call:
    """The call as changed by a variant.  Raises BadCall if neither names a model."""
    extra = {name: value for name, value in call.extra.items() if name != FIELD}
    if variant.template is not None:
        own = extra.get(TEMPLATE)
        own = own if isinstance(own, dict) else {}
        extra[TEMPLATE] = {**own, **variant.template.model_dump()}
    elif variant.model is not None and call.model.startswith(TEMPLATES):
        extra[TEMPLATE] = named(call.model, extra.get(TEMPLATE))
    tags = {**call.tags, **owned(call, variant)}
    return call.but(model=model_of(call, variant), ask=asked(call.ask, variant), extra=extra, tags=tags)


def named(model: str, own: JSON) -> JSON:
    """The `template` field for a call whose model is a template.  own: what the field contains already."""
    name, at, version = model.removeprefix(TEMPLATES).partition("@")
    told: dict[str, JSON] = {"name": name, **({"version": version} if at else {})}
    if isinstance(own, dict):
        return {**own, **told}
    return told if own is None or isinstance(own, str) else own


def owned(call: Call, variant: Variant) -> dict[str, str]:
    own = {}
    if variant.model is not None:
        own[OWN_MODEL] = call.model
    if variant.template is not None:
        own[VARIANTS_TEMPLATE] = variant.template.name
    if variant.is_for_chats and isinstance(call.ask, Chat):
        own[OWN_SYSTEM] = "\n\n".join(one.text for one in call.ask.messages if one.role == "system")
    return own


def model_of(call: Call, variant: Variant) -> str:
    if variant.model is not None:
        return variant.model
    if variant.template is not None and call.model.startswith((NAMES, TEMPLATES)):
        return f"{TEMPLATES}{variant.template.name}"
    if call.model.startswith(NAMES):
        message = (
            f"The variant '{variant.name}' names no model: send one in 'model', and the experiment's name in "
            "'experiment'."
        )
        raise BadCall(message, param="model", code="experiment_without_model")
    return call.model


def asked(ask: Ask, variant: Variant) -> Ask:
    if variant.parameters and isinstance(ask, Chat | Complete):
        own = {name: SAMPLING[name](value, name) for name, value in variant.parameters.items()}
        ask = replace(ask, options={**ask.options, **own})
    if variant.is_for_chats and not isinstance(ask, Chat):
        raise BadCall("This experiment is for chats only.", param=FIELD, code="experiment_not_for_this")
    if variant.system is not None and isinstance(ask, Chat):
        others = tuple(one for one in ask.messages if one.role != "system")
        system = (Message("system", variant.system),) if variant.system else ()
        ask = replace(ask, messages=(*system, *others))
    return ask
