"""Hosts that fail, rest, are tried and come back; told by the clock alone."""

from __future__ import annotations

from proxy.upstreams.standing import CLOSED, COOLING, FIRST, RESTING, START, STARTING, Standing


def test_one_failure_makes_a_host_come_last_for_a_while() -> None:
    one = Standing("a")
    assert one.burden(100.0) == 0
    assert one.failed(100.0) == 0.0
    assert one.burden(100.0) == RESTING and one.state(100.0) == "resting"
    assert one.burden(100.0 + FIRST) == 0


def test_several_in_a_row_close_it_until_one_call_has_shown_that_it_is_well() -> None:
    one = Standing("a")
    rests = [one.failed(100.0) for _ in range(COOLING)]
    assert rests[:-1] == [0.0] * (COOLING - 1) and rests[-1] == FIRST * 2 ** (COOLING - 1)
    assert one.burden(100.0) == CLOSED and one.state(100.0) == "cooling"
    later = 100.0 + rests[-1]
    assert one.burden(later) == 0, "now one call may try it"
    one.trial = True
    assert one.burden(later) == CLOSED and one.state(later) == "trial"
    assert one.failed(later) == 2 * rests[-1]
    assert not one.answered(later), "a call from before says nothing"
    one.trial = True
    assert one.answered(later + 100)
    assert one.state(later + 100) == "starting"


def test_one_that_is_back_grows_into_its_share() -> None:
    one = Standing("a", out=True)
    one.let_back(100.0)
    shares = [one.burden(100.0 + START * part / 4) for part in range(5)]
    assert shares == [STARTING, STARTING * 3 // 4, STARTING // 2, STARTING // 4, 0]
    assert one.well and one.state(100.0 + START) == "in"


def test_a_single_failure_is_forgotten_by_the_next_answer() -> None:
    one = Standing("a")
    one.failed(100.0)
    assert not one.answered(100.1)
    assert one.burden(100.1) == 0 and one.state(100.1) == "in"
