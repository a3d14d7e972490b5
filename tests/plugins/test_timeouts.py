from __future__ import annotations

import asyncio

import pytest

from plugins.timeouts import Timeouts
from proxy.background import Background
from proxy.errors import UpstreamError
from proxy.host import Host, Services
from proxy.streams import collect
from proxy.types import Call, Chat, Deadline, Events, Finish, Message, Reply, Text

CALL = Call(id="1", route="chat", model="m", ask=Chat(messages=(Message("user", "hi"),)), stream=True)


def timeouts(**settings: float | None) -> Timeouts:
    host = Host(Services(None, Background()), None, None, None, None, None)  # type: ignore[arg-type]  # lends only the clock
    return Timeouts(Timeouts.Settings.model_validate(settings), host)


class Upstream:
    """Begins after `first` seconds, then pauses for each of `pauses` seconds between events."""

    def __init__(self, first: float = 0.0, *pauses: float) -> None:
        self.first, self.pauses = first, pauses
        self.seen: list[Call] = []
        self.closed = False

    async def __call__(self, call: Call) -> Reply:
        self.seen.append(call)
        await asyncio.sleep(self.first)
        return Reply.of(self.events())

    async def events(self) -> Events:
        try:
            yield Text("a")
            for pause in self.pauses:
                await asyncio.sleep(pause)
                yield Text("b")
            yield Finish("stop")
        finally:
            self.closed = True


async def test_a_stream_within_its_limits_is_not_affected() -> None:
    reply = await timeouts(between_events=60, first_event=60, total=60)(CALL, Upstream(0, 0, 0))
    assert (await collect(reply)).choices[0].text == "abb"


async def test_a_stream_that_does_not_begin_is_ended() -> None:
    with pytest.raises(UpstreamError, match="did not begin") as caught:
        await timeouts(first_event=0.03)(CALL, Upstream(9))
    assert (caught.value.cause, caught.value.status) == ("timeout", 504)


async def test_first_event_does_not_limit_a_whole_answer() -> None:
    reply = await timeouts(first_event=0.01)(CALL.but(stream=False), Upstream(0.05))
    assert (await collect(reply)).choices[0].text == "a"


async def test_a_pause_that_is_too_long_ends_the_stream_and_closes_its_source() -> None:
    upstream = Upstream(0, 9)
    reply = await timeouts(between_events=0.03)(CALL, upstream)
    with pytest.raises(UpstreamError, match=r"paused for more than 0\.03 seconds"):
        await collect(reply)
    assert upstream.closed


async def test_total_ends_even_a_steady_stream() -> None:
    reply = await timeouts(total=0.05, between_events=None)(CALL, Upstream(0, *[0.01] * 50))
    with pytest.raises(UpstreamError, match="not complete in time"):
        await collect(reply)


async def test_for_a_whole_answer_from_a_stream_only_the_total_is_limited() -> None:
    call = CALL.but(stream=False)
    reply = await timeouts(total=0.1, between_events=0.01)(call, Upstream(0, 9))
    with pytest.raises(UpstreamError, match="not complete in time"):
        await collect(reply)
    reply = await timeouts(total=9, between_events=0.01)(call, Upstream(0, 0.2))
    assert (await collect(reply)).choices[0].text == "ab"


async def test_a_slow_consumer_does_not_count_as_a_pause_of_the_upstream() -> None:
    reply = await timeouts(between_events=0.03)(CALL, Upstream(0, 0))
    await anext(reply.events)
    await asyncio.sleep(0.1)
    assert await anext(reply.events) == Text("b")
    await reply.aclose()


async def test_a_cancellation_from_outside_stays_a_cancellation() -> None:
    reply = await timeouts(between_events=5)(CALL, Upstream(0, 9))
    reading = asyncio.ensure_future(collect(reply))
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_inner_plugins_get_the_deadline_and_an_earlier_one_stays() -> None:
    upstream, now = Upstream(), asyncio.get_running_loop().time()
    await (await timeouts(total=100, connect=3)(CALL, upstream)).aclose()
    await (await timeouts(total=100)(CALL.but(deadline=Deadline(now + 5)), upstream)).aclose()
    first, second = upstream.seen
    assert first.deadline is not None and first.deadline.at - now == pytest.approx(100, abs=30)
    assert first.connect_timeout == 3
    assert second.deadline is not None and second.deadline.at == now + 5


async def test_a_deadline_can_be_postponed_while_it_is_awaited() -> None:
    outer = Deadline(asyncio.get_running_loop().time() + 0.1)
    for later in (Deadline(outer.at + 30), None):
        asyncio.get_running_loop().call_later(0.02, outer.put_off, later)
        reply = await timeouts(total=100)(CALL.but(stream=False, deadline=outer), Upstream(0.3))
        assert (await collect(reply)).choices[0].text == "a"
    with pytest.raises(UpstreamError, match="not complete in time"):
        await timeouts(total=0.1)(CALL.but(stream=False, deadline=outer), Upstream(9))
