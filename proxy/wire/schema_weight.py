"""How much work a caller's JSON schema can make of checking an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from proxy.errors import BadCall
from proxy.types import JSON
from proxy.wire.pointer import pointed

MOST_NODES: Final = 20_000
"""Nodes of a schema once its references are followed."""
MOST_STEPS: Final = 1_000_000
"""Steps that one answer may take, estimated from above."""
ROOT: Final = "#"


@dataclass(slots=True)
class Part:
    """Of a schema with its references followed: its nodes, and the references that lead back to where they stand.

    back: of those that lead out of it, how many to each target.  loops: all others.
    """

    nodes: int = 1
    loops: int = 0
    back: Counter[str] = field(default_factory=Counter)

    def add(self, other: Part, times: int = 1) -> None:
        self.nodes += other.nodes
        self.loops += times * other.loops
        for target, count in other.back.items():
            self.back[target] += times * count

    def closed(self, ref: str) -> None:
        """It is what this reference stands for: what leads to its own beginning does not lead out of it."""
        self.loops += self.back.pop(ref, 0)


class Weight:
    """Nodes of a schema with its references followed, and how many of these lead back to where they stand.

    A chain of schemas that each refer twice to the next is exponential in its length, and one that refers twice
    to itself, by whatever others, is exponential in the depth of the answer; no validator is safe from either.
    Raises BadCall for the first, and for references that are not of the form `#` or `#/…`.
    """

    def __init__(self, schema: Mapping[str, JSON], param: str) -> None:
        self.root = schema
        self.param = param
        self.known: dict[str, Part] = {}
        self.open: set[str] = {ROOT}
        self.loops = self.steps = 0
        """loops: the most of them between which an answer may choose anew with each of its levels."""
        try:
            whole = self.weigh(schema)
        except RecursionError:  # a long chain of references
            raise self.too_large() from None
        self.nodes = whole.nodes
        self.settle(ROOT, whole)

    def settle(self, ref: str, part: Part) -> None:
        """part: all that a reference stands for.  Nobody comes back to one that nothing in it leads to."""
        if part.back[ref]:
            self.loops = max(self.loops, part.loops + part.back.total())
        part.closed(ref)

    def weigh(self, node: JSON) -> Part:
        part = Part()
        for inner in self.inside(node):
            part.add(inner)
            if part.nodes > MOST_NODES:
                raise self.too_large()
        return part

    def inside(self, node: JSON) -> Iterator[Part]:
        if isinstance(node, list):
            yield from map(self.weigh, node)
        elif isinstance(node, Mapping):
            for name, one in node.items():
                if name in ("$dynamicRef", "$recursiveRef"):
                    raise self.refused(f"'{name}' is not supported")
                yield self.follow(one) if name == "$ref" and isinstance(one, str) else self.weigh(one)

    def follow(self, ref: str) -> Part:
        if ref in self.open:
            return Part(back=Counter({ref: 1}))
        if ref not in self.known:
            self.open.add(ref)
            part = self.weigh(self.target(ref))
            self.open.discard(ref)
            self.settle(ref, part)
            self.known[ref] = part
        return self.again(ref, frozenset({ref}))

    def again(self, ref: str, seen: frozenset[str]) -> Part:
        """What a reference stands for here, where others are open than when it was followed: what led back to one of
        those that are not leads on.  seen: those on the way here."""
        self.steps += 1
        if self.steps > MOST_NODES:
            raise self.too_large()
        known = self.known[ref]
        part = Part(known.nodes, known.loops)
        for target, count in known.back.items():
            if target in self.open:
                part.back[target] += count
            elif target in seen:
                part.loops += count
            else:
                on = self.again(target, seen | {target})
                part.add(Part(0, on.loops, on.back), count)
        return part

    def target(self, ref: str) -> JSON:
        if not ref.startswith("#/"):
            raise self.refused(f"the reference {ref[:80]!r} does not point into the schema")
        try:
            return pointed(self.root, ref)
        except LookupError:
            raise self.refused(f"the reference {ref[:80]!r} does not exist") from None

    def too_large(self) -> BadCall:
        return self.refused("it is too large once its references are followed")

    def refused(self, why: str) -> BadCall:
        return BadCall(f"Invalid '{self.param}': {why}.", param=self.param, code="invalid_schema")

    def allows(self, answer: JSON) -> bool:
        """Whether checking this answer ends in reasonable time."""
        if self.loops < 2:
            return True
        return all(count * self.loops**depth <= MOST_STEPS for depth, count in enumerate(levels(answer), 1))


def levels(value: JSON) -> Iterator[int]:
    """How many values it has at each depth."""
    level = [value]
    while level:
        yield len(level)
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
