"""Bounds the work of checking an answer against a caller's JSON schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from proxy.errors import BadCall
from proxy.types import JSON
from proxy.wire.pointer import pointed

MOST_NODES: Final = 20_000
"""Maximum number of nodes in a schema with its references followed."""
MOST_STEPS: Final = 1_000_000
"""Maximum number of steps to check one answer, as an upper estimate."""
MOST_PATTERNS: Final = 200
"""Maximum number of different regular expressions in a schema: compiling one usually takes 0.1 ms to 0.3 ms."""
PATTERNS_SIZE: Final = 8 * 2**20
"""Bytes that the compiled regular expressions of a call's schemas share; compiling so many takes about 0.2 s."""
LEAST: Final = 64 * 1024
"""Bytes that each of them may have even if there are many; most need far fewer."""
ROOT: Final = "#"


@dataclass(slots=True)
class Part:
    """A part of a schema with its references followed: the numbers of its nodes and of its recursive references.

    back: recursive references to a schema that encloses this part, counted by target.  loops: all others.
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
        """Mark the part as the complete target of a reference: references to it no longer lead out of it."""
        self.loops += self.back.pop(ref, 0)


LEAF: Final = Part()


class Weight:
    """The number of a schema's nodes with its references followed, of its recursive references, and of its patterns.

    Checking takes exponential time in two cases, with any validator: in the length of a chain of schemas that each
    refer twice to the next, and in the depth of the answer if a schema refers twice to itself, also indirectly.
    Raises BadCall for the first, and for references that are not of the form `#` or `#/…`.
    """

    def __init__(self, schema: Mapping[str, JSON], param: str) -> None:
        self.root = schema
        self.param = param
        self.known: dict[str, Part] = {}
        self.open: set[str] = {ROOT}
        self.patterns: set[str] = set()
        """The different regular expressions."""
        self.loops = self.steps = 0
        """loops: the largest number of recursive references that one level of an answer may have to try."""
        try:
            whole = self.weigh(schema)
        except RecursionError:  # a long chain of references
            raise self.too_large() from None
        self.nodes = whole.nodes
        if len(self.patterns) > MOST_PATTERNS:
            raise self.refused(f"it has more than {MOST_PATTERNS} different regular expressions")
        self.settle(ROOT, whole)

    def settle(self, ref: str, part: Part) -> None:
        """Count the loops in a reference's target.  part: the target, which is recursive if it refers to itself."""
        if part.back[ref]:
            self.loops = max(self.loops, part.loops + part.back.total())
        part.closed(ref)

    def pattern_size(self, schemas: int) -> int:
        """The maximum bytes of one compiled regular expression.  schemas: how many the call has."""
        return max(LEAST, PATTERNS_SIZE // max(1, len(self.patterns) * schemas))

    def weigh(self, node: JSON) -> Part:
        if not isinstance(node, list | Mapping):
            return LEAF
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
                if name == "pattern" and isinstance(one, str):
                    self.patterns.add(one)
                elif name == "patternProperties" and isinstance(one, Mapping):
                    self.patterns.update(one)
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
        """The target of a reference that was already followed, as it is here.

        Other references may be open than at that time; those that led back to one that is not open now are followed.
        seen: the references on the way here.
        """
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
        """Whether checking this answer takes a reasonable time."""
        if self.loops < 2:
            return True
        return all(count * self.loops**depth <= MOST_STEPS for depth, count in enumerate(levels(answer), 1))


def levels(value: JSON) -> Iterator[int]:
    """The number of values at each depth."""
    level = [value]
    while level:
        yield len(level)
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
