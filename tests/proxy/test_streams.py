"""Replies are closed in order, whatever happens, and can be collected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from proxy.streams import Answer, begun, collect, replay
from proxy.types import Event, Events, Finish, Reply, Stage, Text, Thinking, ToolCall, ToolCalled, Usage, Vectors

HELLO: list[Event] = [Text("Hel"), Text("lo"), Finish("stop")]


async def noted(log: list[str], name: str, source: Events) -> Events:
    """Passes on its source, and logs when it is closed."""
    try:
        async for event in source:
            yield event
    finally:
        log.append(name)


def telling(log: list[str], name: str) -> Stage:
    return lambda source: noted(log, name, source)


def staged(log: list[str]) -> Reply:
    inner = Reply.of(noted(log, "source", replay(HELLO))).on_close(lambda: log.append("connection"))
    return inner.through(telling(log, "inner")).through(telling(log, "outer"))


async def failing(error: BaseException, *first: Event) -> Events:
    for event in first:
        yield event
    raise error


def raising(log: list[str], name: str) -> Callable[[], None]:
    def closer() -> None:
        log.append(name)
        raise ValueError(name)

    return closer


# --- closing -----------------------------------------------------------------------------------------


async def test_the_outermost_stage_closes_first_and_the_connection_last() -> None:
    log: list[str] = []
    reply = staged(log)
    await anext(reply.events)
    await reply.aclose()
    assert log == ["outer", "inner", "source", "connection"]


async def test_source_and_connection_of_a_stage_that_never_started_are_closed() -> None:
    log: list[str] = []
    source = noted(log, "source", replay(HELLO))
    await anext(source)
    reply = Reply.of(source).on_close(lambda: log.append("connection")).through(telling(log, "stage"))
    await reply.aclose()
    assert log == ["source", "connection"]
    assert await anext(reply.events, None) is None


async def test_a_reply_can_be_closed_twice() -> None:
    log: list[str] = []
    reply = staged(log)
    await reply.aclose()
    await reply.aclose()
    assert log == ["connection", "connection"]


async def test_every_closer_runs_even_after_one_raised() -> None:
    log: list[str] = []
    reply = Reply.of(noted(log, "source", replay(HELLO)))
    await anext(reply.events)
    for name in ("first", "second"):
        reply = reply.on_close(raising(log, name))
    reply = reply.on_close(lambda: log.append("last"))
    with pytest.raises(ValueError, match="second") as caught:
        await reply.aclose()
    assert log == ["source", "first", "second", "last"]
    assert str(caught.value.__context__) == "first"


async def test_a_closer_can_be_asynchronous() -> None:
    log: list[str] = []

    async def closer() -> None:
        await asyncio.sleep(0)
        log.append("closed")

    await Reply.of(replay(HELLO)).on_close(closer).aclose()
    assert log == ["closed"]


async def test_closing_is_completed_although_it_is_cancelled() -> None:
    log: list[str] = []

    async def waits() -> None:
        log.append("waits")
        await asyncio.Event().wait()

    reply = Reply.of(replay(HELLO)).on_close(waits).on_close(lambda: log.append("last"))
    closing = asyncio.ensure_future(reply.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert log == ["waits", "last"]


async def test_adding_facts_changes_nothing_else() -> None:
    log: list[str] = []
    reply = staged(log).noting(cache="miss", rule="a").noting(cache="hit")
    assert reply.facts == {"cache": "hit", "rule": "a"}
    await reply.aclose()
    assert log == ["connection"]


# --- begun -------------------------------------------------------------------------------------------


async def test_a_begun_reply_has_its_first_event_and_yields_all() -> None:
    log: list[str] = []
    reply = await begun(Reply.of(noted(log, "source", replay(HELLO)), cache="miss"))
    assert not log and reply.facts == {"cache": "miss"}
    assert [event async for event in reply.events] == HELLO
    await reply.aclose()
    assert log == ["source"]


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError()])
async def test_a_failure_to_start_is_raised_and_everything_is_closed(error: BaseException) -> None:
    log: list[str] = []
    reply = Reply.of(failing(error)).on_close(lambda: log.append("connection"))
    with pytest.raises(type(error)):
        await begun(reply)
    assert log == ["connection"]


async def test_a_later_failure_is_raised_to_the_reader() -> None:
    reply = await begun(Reply.of(failing(ValueError("late"), Text("a"))))
    assert await anext(reply.events) == Text("a")
    with pytest.raises(ValueError, match="late"):
        await anext(reply.events)
    await reply.aclose()


async def test_a_reply_without_events_begins_empty_and_can_be_closed() -> None:
    log: list[str] = []
    reply = await begun(Reply.of(replay([])).on_close(lambda: log.append("connection")))
    assert [event async for event in reply.events] == []
    await reply.aclose()
    assert log == ["connection"]


async def test_a_begun_reply_that_nobody_reads_closes_its_source() -> None:
    log: list[str] = []
    reply = await begun(staged(log))
    await reply.aclose()
    assert log == ["outer", "inner", "source", "connection"]


# --- collect -----------------------------------------------------------------------------------------


async def test_an_answer_is_collected_by_choice() -> None:
    logprob = {"token": "o", "logprob": -1.0}
    events: list[Event] = [
        Text("tw", 1),
        Thinking("hm"),
        Thinking(", so"),
        Text("one"),
        Text("o", 1, (logprob,)),
        ToolCalled("c", "f", "{}", 1),
        Finish("tool_calls", 1),
        Finish("length"),
        Usage(1, 2),
    ]
    answer = await collect(Reply.of(replay(events)))
    first, second = answer.choices[0], answer.choices[1]
    assert (first.text, first.thinking, first.finish, first.tool_calls) == ("one", "hm, so", "length", [])
    assert (second.text, second.thinking, second.finish) == ("two", "", "tool_calls")
    assert (second.tool_calls, second.logprobs) == ([ToolCall("c", "f", "{}")], [logprob])
    assert answer.usage == Usage(1, 2) and answer.vectors is None


async def test_vectors_are_collected_unchanged() -> None:
    vectors = Vectors(np.ones((1, 2), np.float32))
    answer = await collect(Reply.of(replay([vectors, Usage(1, 0)])))
    assert answer.vectors is vectors and not answer.choices


async def test_a_collected_reply_is_closed() -> None:
    log: list[str] = []
    await collect(staged(log))
    assert sorted(log) == ["connection", "inner", "outer", "source"] and log[-1] == "connection"


async def test_a_reply_that_fails_while_it_is_collected_is_closed() -> None:
    log: list[str] = []
    with pytest.raises(ValueError, match="late"):
        await collect(Reply.of(failing(ValueError("late"), Text("a"))).on_close(lambda: log.append("connection")))
    assert log == ["connection"]


def test_an_empty_answer_has_no_choices() -> None:
    assert Answer().choices == {} and Answer().choice(0).text == ""
