"""Resolves references within a JSON schema.  Source: RFC 6901, sections 4 and 6."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

from proxy.types import JSON


def pointed(root: JSON, ref: str) -> JSON:
    """The part of a schema that a reference such as `#/$defs/Tree` or `#/properties/a/anyOf/0` points to.

    Raises LookupError if there is none.
    """
    if ref != "#" and not ref.startswith("#/"):
        raise LookupError(ref)
    found: JSON = root
    for step in unquote(ref).split("/")[1:]:
        found = _part(found, step.replace("~1", "/").replace("~0", "~"))
    return found


def _part(whole: JSON, step: str) -> JSON:
    if isinstance(whole, Mapping):
        return whole[step]
    if isinstance(whole, list) and step.isascii() and step.isdecimal() and len(step) < 10:
        return whole[int(step)]
    raise LookupError(step)
