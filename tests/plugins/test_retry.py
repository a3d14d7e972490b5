from __future__ import annotations

import pytest
from msgspec import structs

from plugins.retry import Retry
from plugins.retry.record import BUCKET, HOURS, Record
from proxy.announcements import Attempt
from proxy.background import Background
from proxy.errors import BadCall, Cause, ProxyError, UpstreamError
from proxy.host import Clock, Host, Services
from proxy.streams import collect, replay
from proxy.types import Call, Chat, Deadline, Finish, Handler, Message, Reply, Text
from tests.clocks import Watch

CALL = Call(id="1", route="chat", model="m", ask=Chat(messages=(Message("user", "hi"),)))


class Ticking(Clock):
    """A clock that advances only by sleeping, and whose random waits are always the longest."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def uniform(self, low: float, high: float) -> float:
        return high


class Upstream:
    """Fails with each of these errors in turn, then answers."""

    def __init__(self, *errors: ProxyError) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self, call: Call) -> Reply:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return Reply.of(replay([Text("Hello"), Finish("stop")]))


def retry(clock: Clock, **settings: object) -> Retry:
    services = Services(None, Background(), clock)  # type: ignore[arg-type]  # no HTTP is made here
    host = Host(services, None, None, None, None, None)  # type: ignore[arg-type]
    return Retry(Retry.Settings.model_validate(settings), host)


def down(cause: Cause = "connect", wait: float | None = None) -> UpstreamError:
    return UpstreamError("down", cause, wait=wait)


async def test_a_call_is_retried_until_it_starts() -> None:
    clock, upstream = Ticking(), Upstream(down(), down())
    reply = await retry(clock)(CALL, upstream)
    assert reply.facts == {"attempts": "3"}
    assert (await collect(reply)).choices[0].text == "Hello"
    assert clock.slept == [0.5, 1.0]


async def test_the_caller_gets_the_last_failure() -> None:
    upstream = Upstream(down(), down(), down())
    with pytest.raises(UpstreamError):
        await retry(Ticking())(CALL, upstream)
    assert upstream.calls == 3


async def test_waits_are_bounded_and_have_jitter() -> None:
    clock = Ticking()
    await retry(clock, attempts=6, wait=4, max_wait=10)(CALL, Upstream(*[down()] * 5))
    assert clock.slept == [4, 8, 10, 10, 10]


@pytest.mark.parametrize("error", [BadCall("wrong"), down("timeout"), down("memory")])
async def test_permanent_errors_are_not_retried(error: ProxyError) -> None:
    upstream = Upstream(error)
    with pytest.raises(type(error)):
        await retry(Ticking())(CALL, upstream)
    assert upstream.calls == 1


async def test_the_classes_of_retried_errors_are_configurable() -> None:
    upstream = Upstream(down("timeout"))
    await retry(Ticking(), on=["timeout"])(CALL, upstream)
    assert upstream.calls == 2


async def test_retry_after_is_respected_or_the_call_ends() -> None:
    clock = Ticking()
    await retry(clock)(CALL, Upstream(down("overloaded", wait=7)))
    assert clock.slept == [7]
    with pytest.raises(UpstreamError):
        await retry(clock, max_wait=5)(CALL, Upstream(down("overloaded", wait=7)))


async def test_there_is_no_retry_past_the_deadline() -> None:
    upstream = Upstream(down())
    with pytest.raises(UpstreamError):
        await retry(Ticking())(CALL.but(deadline=Deadline(100.2)), upstream)
    assert upstream.calls == 1


async def test_one_attempt_means_no_retry() -> None:
    upstream: Handler = Upstream(down())
    with pytest.raises(UpstreamError):
        await retry(Ticking(), attempts=1)(CALL, upstream)


async def test_an_outage_is_not_multiplied_by_the_number_of_callers() -> None:
    clock = Ticking()
    one = retry(clock, budget=0.5)
    made = one.budget.spend
    assert [made() for _ in range(11)] == [True] * 10 + [False]
    clock.now += 2
    assert [made() for _ in range(3)] == [True, True, False]
    for _ in range(4):
        await one(CALL, Upstream())
    assert [made() for _ in range(3)] == [True, True, False]
    clock.now += 3600
    assert sum(made() for _ in range(200)) == 100


FINE = Attempt("1", "ann", "chat", "demo:latest", "local", 1, "", 0.1)


def test_attempts_are_counted_per_five_minutes() -> None:
    watch = Watch(1000 * BUCKET)
    record = Record(watch)
    for seconds in (0, BUCKET - 1, BUCKET, 2 * BUCKET - 0.001):
        watch.now = 1000 * BUCKET + seconds
        record.attempted(FINE)
    counts = {bucket: sum(one["attempts"] for one in pairs.values()) for bucket, pairs in record.buckets.items()}
    assert counts == {1000: 2, 1001: 2}
    watch.now = 1002 * BUCKET - 1
    assert record.statistics(BUCKET / 3600)["attempts"] == 4, "as of the first five minutes the last second is within"
    watch.now = 1002 * BUCKET + 1
    assert record.statistics(BUCKET / 3600)["attempts"] == 2


def test_attempts_are_remembered_for_two_days() -> None:
    watch = Watch(1000 * BUCKET)
    record = Record(watch)
    for _ in range(HOURS * 3600 // BUCKET + 3):
        record.attempted(FINE)
        watch.move(BUCKET)
    assert len(record.buckets) == HOURS * 3600 // BUCKET and min(record.buckets) == 1003


def test_models_beyond_the_limit_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.retry.record.MODELS", 2)
    record = Record(Watch())
    for name in "abcda":
        record.attempted(structs.replace(FINE, model=name))
    told = record.statistics(1)
    assert told["attempts"] == 5
    assert [(one["model"], one["attempts"]) for one in told["by_model"]] == [("(others)", 2), ("a", 2), ("b", 1)]


def test_a_temporarily_fast_clock_does_not_distort_the_statistics() -> None:
    watch = Watch()
    record = Record(watch)
    for jump in (30 * 86_400, -30 * 86_400, 7200):
        record.attempted(FINE)
        watch.move(jump)
    record.attempted(FINE)
    assert record.statistics(1)["attempts"] == 1, "attempts of two hours ago no longer count"
    assert record.statistics(24)["attempts"] == 3, "nor do attempts in the future"
