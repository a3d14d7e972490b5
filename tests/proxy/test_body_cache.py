"""What is remembered of bodies."""

from __future__ import annotations

from proxy.edge.body_cache import LARGEST, SEEN, Memo


def twice(memo: Memo[str], body: bytes) -> None:
    for _ in range(2):
        memo.put(body, body.decode())


def test_what_comes_again_is_remembered_and_what_comes_once_is_not() -> None:
    memo = Memo[str]()
    memo.put(b"once", "once")
    twice(memo, b"again")
    assert memo.get(b"once") is None and memo.get(b"again") == "again"


def test_large_bodies_are_not_remembered() -> None:
    memo = Memo[str]()
    twice(memo, b"x" * (LARGEST + 1))
    assert memo.get(b"x" * (LARGEST + 1)) is None
    twice(memo, b"x" * LARGEST)
    assert memo.get(b"x" * LARGEST) is not None


def test_it_is_bounded_and_keeps_what_is_asked_for() -> None:
    memo = Memo[str](most=100_000)
    twice(memo, b"wanted")
    for number in range(2000):
        twice(memo, b"%d" % number)
        assert memo.get(b"wanted") == "wanted"
    assert memo.get(b"0") is None and memo.get(b"1999") == "1999"
    assert len(memo.young) + len(memo.old) <= 100_000 // 2000 + 2


def test_bodies_that_come_once_leave_next_to_nothing() -> None:
    memo = Memo[str]()
    for number in range(3 * SEEN):
        memo.put(b"%d" % number, "")
    assert not memo.young and not memo.old and len(memo.seen) <= SEEN
