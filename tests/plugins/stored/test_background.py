"""Responses generated in the background."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection
from typing import Any

import pytest
from sqlalchemy import select, update

from plugins.stored.runs import Runs
from plugins.stored.store import Store
from plugins.stored.tables import ANSWERS
from proxy.upstreams.demo import Fault, Said, Simulator
from tests.conftest import Running, Start
from tests.plugins.stored.asking import HI, KEYS, A, ask, clients, config, ended, respond, streaming
from tests.whole.asking import error_of
from tests.whole.responding import events_of, final_response, parsed

SLOW = Said(pieces=("word ",) * 4_000)


def slow() -> Simulator:
    """An answer that takes eighty seconds."""
    return Simulator(say=lambda _: SLOW, delay=0.02)


async def begun(run: Running, id: str) -> None:
    async with asyncio.timeout(20):
        while (await ask(run, "GET", f"/v1/responses/{id}"))[1]["status"] == "queued":  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_the_sdk_creates_polls_and_cancels(start: Start, database_url: str) -> None:
    async with start(config(database_url), slow()) as run, clients(run) as (client, _):
        quick = await client.responses.create(model="demo", input="hi", background=True, max_output_tokens=5)
        assert quick.status == "queued" and quick.background and not quick.output
        assert (await ended(run, quick.id))["status"] == "incomplete"
        assert (await client.responses.retrieve(quick.id)).output_text.startswith("word")
        long = await client.responses.create(model="demo", input="hi", background=True)
        await begun(run, long.id)
        error = await error_of(await streaming(run, previous_response_id=long.id), 400)
        assert error["code"] == "response_not_complete"
        cancelled = await client.responses.cancel(long.id)
        assert cancelled.status == "cancelled" == (await client.responses.cancel(long.id)).status
        gone = await client.responses.create(model="demo", input="hi", background=True)
        await client.responses.delete(gone.id)
        async with asyncio.timeout(10):
            while run.ollama.running:  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.01)
        assert (await ask(run, "GET", f"/v1/responses/{gone.id}"))[0] == 404


async def test_a_stream_can_be_resumed_from_any_event(start: Start, tmp_path: Any) -> None:
    ollama = Simulator(say=lambda _: Said(pieces=("a ", "b ", "c ") * 20, thinking="Hm."), delay=0.01)
    async with start(config(f"sqlite:///{tmp_path}/x.db"), ollama) as run:
        first = await streaming(run, background=True, model="demo-thinking")
        seen = b""
        while seen.count(b"\n\n") < 7:
            seen += await first.content.readany()
        first.close()
        before = parsed(seen[: seen.rindex(b"\n\n") + 2].decode())
        id, last = before[0]["response"]["id"], before[-1]["sequence_number"]
        live = await events_of(await streaming(run, f"/v1/responses/{id}?stream=true&starting_after={last}"))
        end = final_response([*before, *live])
        assert [one["type"] for one in before[:3]] == ["response.created", "response.queued", "response.in_progress"]
        assert before[0]["response"]["status"] == "queued"
        assert end == await ended(run, id)
        again = await events_of(await streaming(run, f"/v1/responses/{id}?stream=true"))
        assert again == [*before, *live]
        rest = await events_of(await streaming(run, f"/v1/responses/{id}?stream=true&starting_after=20"))
        assert rest == again[21:]
        async with clients(run) as (client, _), client.responses.stream(response_id=id, starting_after=last) as sdk:
            numbers = [one.sequence_number async for one in sdk]
            final = await sdk.get_final_response()
        assert numbers[0] == last + 1 and final.output_text == "a b c " * 20
        whole = await respond(run, background=True)
        error = await error_of(await streaming(run, f"/v1/responses/{whole['id']}?stream=true"), 400)
        assert error["code"] == "not_streamed"


async def test_failed_and_cancelled_streams_end_as_such_and_can_be_replayed(start: Start, tmp_path: Any) -> None:
    ollama = Simulator(faults=[Fault("eof", after=3)], say=lambda _: SLOW, delay=0.02)
    async with start(config(f"sqlite:///{tmp_path}/x.db"), ollama) as run:
        failed = await events_of(await streaming(run, background=True))
        end = final_response(failed)
        assert (end["status"], failed[-2]["type"]) == ("failed", "error")
        kept = await ended(run, end["id"])
        assert (kept["status"], kept["error"], kept["output"]) == ("failed", end["error"], end["output"])
        again = await events_of(await streaming(run, f"/v1/responses/{end['id']}?stream=true"))
        assert again == failed and again[-2]["code"] == "upstream_cut"
        stream = await streaming(run, background=True)
        head = await stream.content.readuntil(b"\n\n")
        id = parsed(head.decode())[0]["response"]["id"]
        await begun(run, id)
        assert (await ask(run, "POST", f"/v1/responses/{id}/cancel"))[1]["status"] == "cancelled"
        rest = parsed((await stream.read()).decode())
        assert rest[-1]["type"] == "response.failed" and rest[-1]["response"]["status"] == "cancelled"
        assert (await ended(run, id))["status"] == "cancelled"
        assert parsed(head.decode()) + rest == await events_of(await streaming(run, f"/v1/responses/{id}?stream=true"))


async def test_a_reader_of_a_cancelled_response_gets_the_events_that_are_stored(
    start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.ended

    async def slowly(*given: Any) -> bool:
        await asyncio.sleep(0.2)  # time for ten more tokens
        return await real(*given)

    ollama = Simulator(say=lambda _: SLOW, delay=0.02)
    async with start(config(f"sqlite:///{tmp_path}/x.db"), ollama) as run:
        stream = await streaming(run, background=True)
        head = await stream.content.readuntil(b"\n\n")
        id = parsed(head.decode())[0]["response"]["id"]
        await begun(run, id)
        monkeypatch.setattr(Store, "ended", slowly)
        await ask(run, "POST", f"/v1/responses/{id}/cancel")
        live = parsed((head + await stream.read()).decode())
        assert live == await events_of(await streaming(run, f"/v1/responses/{id}?stream=true"))


OUTPUT = {"type": "function_call_output", "call_id": "c9", "output": "of a call that nobody made"}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": [OUTPUT]}, 400, "input"),
        ({"model": "nobody-has-it"}, 404, "model"),
        ({"prompt": {"id": "summarize", "variables": {"nope": 1}}}, 400, "prompt.variables"),
        ({"prompt": {"id": "nobody-has-it"}}, 404, "prompt.id"),
        ({"previous_response_id": "resp_x", "stream": True}, 400, "previous_response_id"),
        ({"conversation": "a/b"}, 400, "conversation"),
        ({"input": [OUTPUT], "conversation": "new"}, 400, "input"),
    ],
)
async def test_an_invalid_request_is_refused_at_once(
    start: Start, tmp_path: Any, body: dict[str, Any], status: int, param: str
) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", "stored, templates, conversations, retry")) as run:
        response = await run.http.post(f"{run.url}/v1/responses", headers=A, json={**HI, "background": True, **body})
        assert (await error_of(response, status))["param"] == param
        async with run.server.services.state["database"].reading() as connection:
            assert not (await connection.execute(select(ANSWERS.c.id))).all(), "nothing of it is stored"
        assert not run.server.services.state["stored runs"].runs


async def test_a_conversation_together_with_a_previous_response_is_refused_at_once(
    start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.stored.runs.PATIENCE", 30)  # on a busy machine
    async with start(config(f"sqlite:///{tmp_path}/x.db", "stored, conversations, retry")) as run:
        first = await respond(run)
        body = {**HI, "background": True, "previous_response_id": first["id"]}
        headers = {**A, "x-gemmapy-conversation": "t"}
        error = await error_of(await run.http.post(f"{run.url}/v1/responses", headers=headers, json=body), 400)
    assert (error["param"], error["code"]) == ("previous_response_id", "invalid_parameter_combination")


async def test_a_queued_response_that_cannot_be_answered_fails(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", background=1), slow()) as run:
        first = await respond(run, background=True)
        await begun(run, first["id"])
        made = await respond(run, background=True, model="nobody-has-it")
        stream = await streaming(run, background=True, input=[OUTPUT])
        await ask(run, "POST", f"/v1/responses/{first['id']}/cancel")
        end = await ended(run, made["id"])
        assert end["status"] == "failed" and "nobody-has-it" in end["error"]["message"]
        assert end["error"]["code"] == "invalid_prompt"
        live = await events_of(stream)
        again = await events_of(await streaming(run, f"/v1/responses/{final_response(live)['id']}?stream=true"))
        assert again == live and (live[-2]["param"], live[-2]["code"]) == ("input", "invalid_request_error")


async def test_a_response_waiting_for_its_conversations_turn_is_queued_and_checked_later(
    start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.stored.runs.PATIENCE", 0.05)
    async with start(config(f"sqlite:///{tmp_path}/x.db", "stored, conversations, retry"), slow()) as run:
        first = await respond(run, background=True, conversation="t")
        await begun(run, first["id"])
        second = await respond(run, background=True, conversation="t", input=[OUTPUT])
        assert second["status"] == "queued"
        await ask(run, "POST", f"/v1/responses/{first['id']}/cancel")
        assert (await ended(run, second["id"]))["error"]["code"] == "invalid_prompt"


async def test_running_and_queued_responses_are_limited(start: Start, tmp_path: Any) -> None:
    text = config(f"sqlite:///{tmp_path}/x.db", background=1, waiting=1)
    async with start(text, slow()) as run:
        stream = await streaming(run, background=True, input="first")
        first = parsed((await stream.content.readuntil(b"\n\n")).decode())[0]["response"]
        second = await respond(run, background=True, input="second")
        status, document = await ask(run, "POST", "/v1/responses", **HI, background=True)
        assert (status, document["error"]["code"]) == (503, "background_full")
        for _ in range(12):  # the running one continues
            await stream.content.readuntil(b"\n\n")
        assert (await ask(run, "GET", f"/v1/responses/{second['id']}"))[1]["status"] == "queued"
        stream.close()
        await ask(run, "POST", f"/v1/responses/{first['id']}/cancel")
        await begun(run, second["id"])
        await ask(run, "POST", f"/v1/responses/{second['id']}/cancel")


async def test_a_response_running_at_shutdown_fails(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db"), slow()) as run:
        made, waiting = [await respond(run, background=True, input=text) for text in ("a", "b")]
        await begun(run, made["id"])
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as run:
        for one in (made, waiting):
            end = (await ask(run, "GET", f"/v1/responses/{one['id']}"))[1]
            assert end["status"] == "failed" and "stopped" in end["error"]["message"]


async def test_a_response_that_ends_during_shutdown_keeps_its_answer(
    start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, url = Store.ended, f"sqlite:///{tmp_path}/x.db"
    brief = Said(pieces=("word ",) * 50)
    ollama = Simulator(say=lambda body: brief if body["messages"][-1]["content"] == "brief" else SLOW, delay=0.02)
    async with start(config(url), ollama) as run:
        made = [(await respond(run, background=True, input=text))["id"] for text in ("long", "long", "brief")]
        ends = run.server.services.state["stored runs"].runs[made[2]].task

        async def slowly(self: Store, id: str, *given: Any) -> bool:
            if id == made[0]:
                await asyncio.wait([ends])
            return await real(self, id, *given)

        monkeypatch.setattr(Store, "ended", slowly)
    async with start(config(url)) as run:
        kept = [(await ask(run, "GET", f"/v1/responses/{id}"))[1]["status"] for id in made]
    assert kept == ["failed", "failed", "completed"]


@pytest.mark.parametrize("order", [("stored", "usage", "limits"), ("limits", "usage", "stored")])
async def test_the_usage_of_a_response_cut_off_by_shutdown_is_recorded_and_counted(
    start: Start, tmp_path: Any, order: tuple[str, ...]
) -> None:
    """For any order of the plugins in the file."""
    declared = {name: {"limits": [{"tokens_per_day": 1000}]} if name == "limits" else {} for name in order}
    chain = "chains: {chat: [stored, usage, limits]}\n"
    text = f"database: {{url: 'sqlite:///{tmp_path}/x.db'}}\nplugins: {json.dumps(declared)}\n{chain}{KEYS}"
    async with start(text, slow()) as run:
        await respond(run, background=True)
        async with asyncio.timeout(20):
            while not run.ollama.running:  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.02)
    async with start(text) as run:
        figures = (await ask(run, "GET", "/api/metrics/dashboard"))[1]
        assert (figures["total_requests"], figures["errors"]) == (1, 1)
        (limit,) = (await ask(run, "GET", "/api/limits"))[1]["data"]
        assert limit["limits"]["tokens_per_day"]["used"] == figures["prompt_tokens"] > 0


async def test_a_response_of_a_dead_server_fails_and_one_of_another_process_can_be_cancelled(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.stored.runs.BEAT", 0.1)
    monkeypatch.setattr("plugins.stored.retention.SILENT", 0.5)
    async with start(config(database_url), slow()) as run, start(config(database_url)) as other:
        made = await respond(run, background=True)
        await begun(run, made["id"])
        seen = (await ask(other, "GET", f"/v1/responses/{made['id']}"))[1]
        assert seen["status"] == "in_progress"
        assert (await ask(other, "POST", f"/v1/responses/{made['id']}/cancel"))[1]["status"] == "cancelled"
        async with asyncio.timeout(20):
            while run.ollama.running:  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.05)
        dead = await respond(run, background=True, input="dead")
        await begun(run, dead["id"])
        database = other.server.services.state["database"]
        watch = run.server.services.state["stored runs"].watch
        watch.cancel()
        giving = {one for one in run.server.services.background.tasks if one.get_name() == "keeping an answer"}
        await asyncio.wait([watch, *giving])  # let a heartbeat under way finish
        async with database.writing() as connection:
            await connection.execute(update(ANSWERS).where(ANSWERS.c.id == dead["id"]).values(beat=1))
        assert (await ask(other, "GET", f"/v1/responses/{dead['id']}"))[1]["status"] == "failed"


async def test_a_process_with_a_fast_clock_does_not_fail_a_live_response(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.stored.runs.BEAT", 0.05)
    monkeypatch.setattr("plugins.stored.retention.SILENT", 1.0)
    async with start(config(database_url), slow()) as run, start(config(database_url)) as other:
        made = await respond(run, background=True)
        await begun(run, made["id"])
        other.server.services.clock.time = lambda: time.time() + 3600
        assert (await ask(other, "GET", f"/v1/responses/{made['id']}"))[1]["status"] == "in_progress"
        assert (await ask(other, "POST", f"/v1/responses/{made['id']}/cancel"))[1]["status"] == "cancelled"


async def test_a_response_queued_during_a_check_for_cancellations_is_generated(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch, add = Store.touch, Store.add_queued
    coming, looked, added = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def looking(self: Store, ids: Collection[str]) -> set[str]:
        late = coming.is_set()
        wanted = await touch(self, ids)
        if late:
            looked.set()
            await added.wait()
        return wanted

    async def adding(self: Store, *given: Any) -> None:
        coming.set()
        await looked.wait()
        await add(self, *given)
        added.set()

    monkeypatch.setattr("plugins.stored.runs.BEAT", 0.01)
    async with start(config(database_url), slow()) as run:
        await respond(run, background=True)
        monkeypatch.setattr(Store, "touch", looking)
        monkeypatch.setattr(Store, "add_queued", adding)
        made = await respond(run, background=True, max_output_tokens=3, input="quick")
        assert (await ended(run, made["id"]))["status"] == "incomplete"


async def test_a_response_that_has_just_ended_does_not_count_as_cancelled(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end may be visible in the database before the process that wrote it knows."""
    look, done, looks = Runs.look, Store.ended, asyncio.Queue[None]()

    async def looking(self: Runs) -> None:
        await look(self)
        looks.put_nowait(None)

    async def ending(self: Store, *given: Any) -> bool:
        ended = await done(self, *given)
        for _ in range(looks.qsize() + 2):
            await looks.get()
        return ended

    monkeypatch.setattr("plugins.stored.runs.BEAT", 0.01)
    monkeypatch.setattr(Runs, "look", looking)
    monkeypatch.setattr(Store, "ended", ending)
    async with start(config(database_url)) as run:
        events = await events_of(await streaming(run, background=True))
        kept = await ended(run, events[0]["response"]["id"])
    assert kept["status"] == "completed" and final_response(events)["status"] == "completed"


async def test_heartbeats_continue_after_an_unexpected_exception(
    start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat, odd, alive = Store.beat, [RuntimeError("odd")], asyncio.Event()

    async def beating(self: Store, ids: Collection[str]) -> set[str]:
        if odd:
            raise odd.pop()
        wanted = await beat(self, ids)
        alive.set()
        return wanted

    monkeypatch.setattr("plugins.stored.runs.BEAT", 0.01)
    monkeypatch.setattr(Store, "beat", beating)
    async with start(config(f"sqlite:///{tmp_path}/x.db"), slow()) as run:
        await respond(run, background=True)
        async with asyncio.timeout(20):
            await alive.wait()


async def test_a_finished_stream_can_be_replayed_by_another_process(
    start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.stored.responses.LOOK", 0.05)
    text = config(f"sqlite:///{tmp_path}/x.db")
    ollama = Simulator(say=lambda _: Said(pieces=("word ",) * 20), delay=0.01)
    async with start(text, ollama) as run, start(text) as other:
        first = await streaming(run, background=True)
        head = await first.content.readuntil(b"\n\n")
        path = f"/v1/responses/{parsed(head.decode())[0]['response']['id']}?stream=true"
        elsewhere = await events_of(await streaming(other, path))
        assert final_response(elsewhere)["output"][0]["content"][0]["text"] == "word " * 20
        here = [*parsed(head.decode()), *parsed((await first.read()).decode())]
        assert here == elsewhere


async def test_a_reload_ends_no_response_and_usage_is_recorded_once(start: Start, tmp_path: Any) -> None:
    text = config(f"sqlite:///{tmp_path}/x.db")
    stall = Fault("stall", after=3, until=(go := asyncio.Event()))
    ollama = Simulator(say=lambda _: Said(pieces=("word ",) * 30), faults=[stall])
    async with start(text, ollama) as run:
        made = await respond(run, background=True)
        await begun(run, made["id"])
        run.configure(text + "log: {level: error}\n")
        await run.server.reload()
        assert run.server.live.retiring, "the old pipeline waits for the response"
        go.set()
        assert (await ended(run, made["id"]))["status"] == "completed"
        async with asyncio.timeout(10):
            while run.server.live.retiring:  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.01)
        writer = run.server.services.state["usage writer"]
        await writer.flush()
        figures = (await ask(run, "GET", "/api/metrics/dashboard"))[1]
        assert (figures["total_requests"], figures["errors"]) == (1, 0)


async def test_a_background_response_must_be_stored(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as run:
        status, document = await ask(run, "POST", "/v1/responses", **HI, background=True, store=False)
    assert (status, document["error"]["param"]) == (400, "store")
