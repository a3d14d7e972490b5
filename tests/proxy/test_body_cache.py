"""The cache of parsed bodies."""

from __future__ import annotations

from proxy.edge.body_cache import LARGEST, SEEN, BodyCache


def twice(cache: BodyCache[str], body: bytes) -> None:
    for _ in range(2):
        cache.put(body, body.decode())


def test_repeated_bodies_are_remembered_and_unique_ones_are_not() -> None:
    cache = BodyCache[str]()
    cache.put(b"once", "once")
    twice(cache, b"again")
    assert cache.get(b"once") is None and cache.get(b"again") == "again"


def test_large_bodies_are_not_remembered() -> None:
    cache = BodyCache[str]()
    twice(cache, b"x" * (LARGEST + 1))
    assert cache.get(b"x" * (LARGEST + 1)) is None
    twice(cache, b"x" * LARGEST)
    assert cache.get(b"x" * LARGEST) is not None


def test_it_is_bounded_and_keeps_what_is_used() -> None:
    cache = BodyCache[str](most=100_000)
    twice(cache, b"wanted")
    for number in range(2000):
        twice(cache, b"%d" % number)
        assert cache.get(b"wanted") == "wanted"
    assert cache.get(b"0") is None and cache.get(b"1999") == "1999"
    assert len(cache.young) + len(cache.old) <= 100_000 // 2000 + 2


def test_unique_bodies_take_hardly_any_memory() -> None:
    cache = BodyCache[str]()
    for number in range(3 * SEEN):
        cache.put(b"%d" % number, "")
    assert not cache.young and not cache.old and len(cache.seen) <= SEEN
