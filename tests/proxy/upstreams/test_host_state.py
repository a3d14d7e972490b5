"""Hosts that fail, rest, are tried and come back; told by the clock alone."""

from __future__ import annotations

from proxy.upstreams.host_state import (
    COOLDOWN_AFTER,
    COOLDOWN_PENALTY,
    FIRST_REST,
    REST_PENALTY,
    SLOW_START,
    SLOW_START_PENALTY,
    HostState,
)


def test_one_failure_makes_a_host_come_last_for_a_while() -> None:
    one = HostState("a")
    assert one.penalty(100.0) == 0
    assert one.record_failure(100.0) == 0.0
    assert one.penalty(100.0) == REST_PENALTY and one.state(100.0) == "resting"
    assert one.penalty(100.0 + FIRST_REST) == 0


def test_several_in_a_row_close_it_until_one_call_has_shown_that_it_is_well() -> None:
    one = HostState("a")
    rests = [one.record_failure(100.0) for _ in range(COOLDOWN_AFTER)]
    assert rests[:-1] == [0.0] * (COOLDOWN_AFTER - 1) and rests[-1] == FIRST_REST * 2 ** (COOLDOWN_AFTER - 1)
    assert one.penalty(100.0) == COOLDOWN_PENALTY and one.state(100.0) == "cooling"
    later = 100.0 + rests[-1]
    assert one.penalty(later) == 0, "now one call may try it"
    one.trial = True
    assert one.penalty(later) == COOLDOWN_PENALTY and one.state(later) == "trial"
    assert one.record_failure(later) == 2 * rests[-1]
    assert not one.record_success(later), "a call from before says nothing"
    one.trial = True
    assert one.record_success(later + 100)
    assert one.state(later + 100) == "starting"


def test_one_that_is_back_grows_into_its_share() -> None:
    one = HostState("a", out=True)
    one.mark_reachable(100.0)
    shares = [one.penalty(100.0 + SLOW_START * part / 4) for part in range(5)]
    assert shares == [
        SLOW_START_PENALTY,
        SLOW_START_PENALTY * 3 // 4,
        SLOW_START_PENALTY // 2,
        SLOW_START_PENALTY // 4,
        0,
    ]
    assert one.healthy and one.state(100.0 + SLOW_START) == "in"


def test_a_single_failure_is_forgotten_by_the_next_answer() -> None:
    one = HostState("a")
    one.record_failure(100.0)
    assert not one.record_success(100.1)
    assert one.penalty(100.1) == 0 and one.state(100.1) == "in"
