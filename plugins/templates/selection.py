"""Which template a call names, and with which variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from plugins.templates.library import Version
from proxy.errors import BadCall
from proxy.types import JSON, Call
from proxy.wire import read

PREFIX: Final = "template:"
FIELD: Final = "template"
KEYS: Final = ("name", "version", "variables")
LARGEST: Final = 10**9
NUMBER: Final = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Selection:
    """param: the field of the request that names the template."""

    name: str
    version: Version = None
    variables: Mapping[str, JSON] = field(default_factory=dict)
    param: str = "template.name"


def selection_of(call: Call) -> Selection | None:
    """From the model's name, `template:NAME@VERSION`, and the field `template`.  Raises BadCall."""
    given = call.extra.get(FIELD)
    named = call.model[len(PREFIX) :] if call.model.startswith(PREFIX) else None
    if given is None and named is None:
        return None
    told = {"name": given} if isinstance(given, str) else {} if given is None else read.mapping(given, FIELD)
    for key in told:
        if key not in KEYS:
            unknown = f"{FIELD}.{key[:80]}"
            raise BadCall(f"Unknown parameter: '{unknown}'.", param=unknown, code="unknown_parameter")
    values = told.get("variables")
    variables = {} if values is None else read.mapping(values, f"{FIELD}.variables")
    name, version = told.get("name"), version_of(told.get("version"), f"{FIELD}.version")
    if named is not None:
        return from_model(named, name, version, variables)
    return Selection(read.filled(read.needed(told, "name", f"{FIELD}.name"), f"{FIELD}.name"), version, variables)


def from_model(named: str, name: JSON, version: Version, variables: Mapping[str, JSON]) -> Selection:
    """named: the text after `template:`.  The field may repeat the name, and add what the model's name lacks."""
    bare, at, told = named.partition("@")
    if name is not None and name != bare:
        message = "'model' and 'template.name' name two templates; send only one of them."
        raise BadCall(message, param="template.name", code="invalid_parameter_combination")
    if at:
        version = version_of(told, "model")
    return Selection(read.filled(bare, "model"), version, variables, "model" if name is None else f"{FIELD}.name")


def version_of(given: JSON, param: str) -> Version:
    """A version number or an alias; a number may be given as text.  Raises BadCall."""
    if given is None or (type(given) is int and 0 < given < LARGEST):
        return given
    if type(given) is str and given:
        return int(given) if NUMBER.fullmatch(given) else given
    raise BadCall(f"Invalid '{param}': a version is a number from 1, or an alias.", param=param, code="invalid_value")
