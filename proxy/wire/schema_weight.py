"""How much work a caller's JSON schema can make of checking an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from proxy.errors import BadCall
from proxy.types import JSON
from proxy.wire.pointer import pointed

MOST_NODES: Final = 20_000
"""Nodes of a schema once its references are followed."""
MOST_STEPS: Final = 1_000_000
"""Steps that one answer may take, estimated from above."""


class Weight:
    """Nodes of a schema with its references followed, and how many of these lead back to where they stand.

    A chain of schemas that each refer twice to the next is exponential in its length, and one that refers twice
    to itself is exponential in the depth of the answer; no validator is safe from either.
    Raises BadCall for the first, and for references that are not of the form `#` or `#/…`.
    """

    def __init__(self, schema: Mapping[str, JSON], param: str) -> None:
        self.root = schema
        self.param = param
        self.known: dict[str, int] = {}
        self.open: set[str] = {"#"}
        self.loops = 0
        self.nodes = self.weigh(schema)

    def weigh(self, node: JSON) -> int:
        nodes = 1
        if isinstance(node, list):
            nodes += sum(self.weigh(one) for one in node)
        elif isinstance(node, Mapping):
            for name, one in node.items():
                nodes += self.follow(one) if name == "$ref" and isinstance(one, str) else self.weigh(one)
                if name in ("$dynamicRef", "$recursiveRef"):
                    raise self.refused(f"'{name}' is not supported")
        if nodes > MOST_NODES:
            raise self.refused("it is too large once its references are followed")
        return nodes

    def follow(self, ref: str) -> int:
        if ref in self.open:
            self.loops += 1
            return 1
        if ref not in self.known:
            self.open.add(ref)
            self.known[ref] = self.weigh(self.target(ref))
            self.open.discard(ref)
        return self.known[ref]

    def target(self, ref: str) -> JSON:
        if not ref.startswith("#/"):
            raise self.refused(f"the reference {ref[:80]!r} does not point into the schema")
        try:
            return pointed(self.root, ref)
        except LookupError:
            raise self.refused(f"the reference {ref[:80]!r} does not exist") from None

    def refused(self, why: str) -> BadCall:
        return BadCall(f"Invalid '{self.param}': {why}.", param=self.param, code="invalid_schema")

    def allows(self, answer: JSON) -> bool:
        """Whether checking this answer ends in reasonable time."""
        return self.loops < 2 or self.loops ** depth(answer) <= MOST_STEPS


def depth(value: JSON) -> int:
    level, deep = [value], 0
    while level:
        deep += 1
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return deep
