"""Responses that are stored, read and continued, with either database."""

from __future__ import annotations

import asyncio
from contextlib import closing, suppress
from typing import Any

import openai
import pytest
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.stored.fitting import shortened
from plugins.stored.store import Store
from plugins.stored.tables import ANSWERS
from proxy.errors import ConfigError
from proxy.types import Message
from proxy.upstreams.demo import Fault, Said, Simulator
from tests.conftest import Start
from tests.plugins.stored.asking import HI, A, B, ask, clients, config, respond, streaming
from tests.servers import PostgresServer
from tests.whole.asking import asked, data_url, whole
from tests.whole.responding import events_of, final_response
from tests.whole.test_responses import WEATHER


async def test_the_sdk_stores_reads_lists_and_deletes(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run, clients(run) as (client, _):
        made = await client.responses.create(model="demo", input="hi", metadata={"a": "b"}, instructions="be kind")
        assert made.to_dict()["store"] is True
        again = await client.responses.retrieve(made.id)
        assert again.to_dict() == made.to_dict()
        async with client.responses.stream(model="demo", input="ho", previous_response_id=made.id) as events:
            streamed = await events.get_final_response()
        assert (await client.responses.retrieve(streamed.id)).output_text == streamed.output_text
        end = final_response(await events_of(await streaming(run)))
        assert (await ask(run, "GET", f"/v1/responses/{end['id']}"))[1] == end
        items = [one async for one in client.responses.input_items.list(streamed.id, limit=1)]
        assert [(one.type, getattr(one, "role", "")) for one in items] == [
            ("message", "user"), ("message", "assistant"), ("message", "user"),
        ]  # fmt: skip
        assert items[0].to_dict()["content"] == [{"type": "input_text", "text": "ho"}]
        assert items[1].id == made.output[0].id
        page = await client.responses.input_items.list(streamed.id, order="asc", after=items[1].id or "")
        assert [one.id for one in page.data] == [items[0].id]
        unkept = await client.responses.create(model="demo", input="hi", store=False)
        for id in (unkept.id, "resp_none", "resp_\0"):
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(id)
        await client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
        assert [one.id async for one in client.responses.input_items.list(streamed.id)] == [items[0].id]
        with pytest.raises(openai.BadRequestError, match="Previous response"):
            await client.responses.create(model="demo", input="x", previous_response_id=streamed.id)


async def test_the_history_reaches_the_model_unchanged_in_every_turn(start: Start, database_url: str) -> None:
    def say(body: Any) -> Said:
        last = body["messages"][-1]
        if last["role"] == "tool":
            return Said("4 degrees.", thinking="A result.")
        return Said("I look.", thinking="Rome.", tool_calls=(("get_weather", {"city": "Rome"}),))

    async with start(config(database_url), Simulator(say=say)) as run:
        body: Any = {"model": "demo-thinking", "tools": [WEATHER]}
        first = await respond(run, **body, instructions="be brief")
        call = first["output"][-1]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "4"}
        second = await respond(run, **body, previous_response_id=first["id"], input=[result])
        other = await respond(run, **body, previous_response_id=first["id"], input=[{**result, "output": "5"}])
        await respond(run, **body, previous_response_id=second["id"], input="and now?", instructions="be kind")
        turns = [one["messages"] for one in asked(run.ollama)]
    assert [one["role"] for one in turns[3]] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert turns[0][0]["content"] == "be brief" and turns[3][0]["content"] == "be kind"  # and no other in between
    assert turns[3][1:4] == turns[1] and turns[3][1:3] == turns[2][:2] and turns[2][2]["content"] == "5"
    assert turns[1][1]["thinking"] == "Rome." and turns[1][1]["content"] == "I look."
    assert turns[1][1]["tool_calls"][0]["id"] == turns[1][2]["tool_call_id"]
    assert other["id"] != second["id"]


async def test_a_cut_off_response_is_stored_as_failed_and_an_abandoned_one_is_not_stored(
    start: Start, database_url: str
) -> None:
    ollama = Simulator(faults=[Fault("eof", after=3)], delay=0.01)
    async with start(config(database_url), ollama) as run:
        end = final_response(await events_of(await streaming(run)))
        status, document = await ask(run, "GET", f"/v1/responses/{end['id']}")
        assert (status, document["status"]) == (200, "failed") and document["output"] == end["output"]
        left = await streaming(run, input="another")
        head = await left.content.readuntil(b"\n\n")
        left.close()
        id = head.split(b'"id":"')[1].split(b'"')[0].decode()
        async with asyncio.timeout(10):
            while run.ollama.running:  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.01)
        assert (await ask(run, "GET", f"/v1/responses/{id}"))[0] == 404


async def test_other_callers_responses_are_not_accessible(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        mine = await respond(run)
        later = await respond(run, background=True)
        for id in (mine["id"], later["id"]):
            for method, rest in (("GET", ""), ("GET", "?stream=true"), ("DELETE", ""), ("POST", "/cancel"),
                                 ("GET", "/input_items")):  # fmt: skip
                status, document = await ask(run, method, f"/v1/responses/{id}{rest}", B)
                assert (status, document["error"]["code"]) == (404, "not_found"), (method, rest)
            status, document = await ask(run, "POST", "/v1/responses", B, **HI, previous_response_id=id)
            assert (status, document["error"]["code"]) == (400, "previous_response_not_found")
        assert (await ask(run, "GET", f"/v1/responses/{mine['id']}", A))[0] == 200
        nobody = await run.http.get(f"{run.url}/v1/responses/{mine['id']}")
        assert nobody.status == 401


WRONG = [
    ("GET", "?starting_after=1", "starting_after"),
    ("GET", "?stream=perhaps", "stream"),
    ("GET", "?stream=true", "stream"),
    ("GET", "?strange=1", "strange"),
    ("GET", "/input_items?limit=0", "limit"),
    ("GET", "/input_items?order=up", "order"),
    ("GET", "/input_items?after=msg_none", "after"),
    ("GET", "?include=message.input_image.image_url&include=all", "include[1]"),
    ("GET", "/input_items?include=all", "include[0]"),
    ("POST", "/cancel", "id"),
]  # fmt: skip


async def test_an_invalid_field_is_named_in_the_error(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as run:
        made = await respond(run)
        for method, path, param in WRONG:
            status, document = await ask(run, method, f"/v1/responses/{made['id']}{path}")
            assert (status, document["error"]["param"]) == (400, param), path


async def test_a_response_deleted_while_it_is_read_is_not_found(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(config(database_url)) as run:
        made = await respond(run)
        line = Store.line

        async def going(self: Store, connection: AsyncConnection, *given: Any) -> Any:
            found = await line(self, connection, *given)
            await connection.execute(delete(ANSWERS))
            return found

        monkeypatch.setattr(Store, "line", going)
        status, document = await ask(run, "POST", "/v1/responses", **HI, previous_response_id=made["id"])
    assert (status, document["error"]["code"]) == (400, "previous_response_not_found")


async def test_a_call_too_large_to_store_is_an_error_with_the_remedy(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", max_bytes=1000)) as run:
        large = {**HI, "input": "x" * 2000}
        status, document = await ask(run, "POST", "/v1/responses", **large)
        assert (status, document["error"]["code"]) == (413, "too_large_to_store")
        assert (await ask(run, "POST", "/v1/responses", **large, store=False))[0] == 200


async def test_fields_of_responses_are_refused_in_chats(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as run:
        for name, value in (("previous_response_id", "resp_1"), ("background", True)):
            chat: Any = {"model": "demo", "messages": [{"role": "user", "content": "x"}], name: value}
            status, document = await ask(run, "POST", "/v1/chat/completions", **chat)
            assert (status, document["error"]["param"]) == (400, name)
            assert (await ask(run, "POST", "/v1/chat/completions", **{**chat, name: type(value)()}, store=True))[
                0
            ] == 200


async def test_images_of_earlier_turns_are_sent_again(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as run:
        parts = [{"type": "input_text", "text": "see"}, {"type": "input_image", "image_url": data_url()}]
        first = await respond(run, model="demo-vision", input=[{"role": "user", "content": parts}])
        await respond(run, model="demo-vision", previous_response_id=first["id"], input="and?")
        one, other = asked(run.ollama)
    assert one["messages"][0]["images"] and one["messages"][0] == other["messages"][0]


async def test_stored_must_come_before_plugins_that_take_part_in_an_answer(start: Start, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="'stored' generates answers in the background and must come before 'usage'"):
        async with start(config(f"sqlite:///{tmp_path}/x.db", chain="usage, stored")):
            pass


def remaining_exchanges(count: int) -> list[int]:
    """The numbers of exchanges left at each attempt, for a history of this many."""
    messages = [Message(role, str(number)) for number in range(count) for role in ("user", "assistant")]
    found = []
    for shorter in shortened((Message("system", "be kind"), *messages)):
        assert shorter[0].role == "system" and shorter[1].role == "user"
        assert shorter[1:] == tuple(messages[-len(shorter) + 1 :])
        found.append(len(shorter) // 2)
    return found


def test_the_oldest_exchanges_are_dropped_in_steps_of_powers_of_two() -> None:
    assert (
        remaining_exchanges(1) == []
        and remaining_exchanges(2) == [1]
        and remaining_exchanges(3) == [2, 1]
        and remaining_exchanges(4) == [3, 2, 1]
    )
    assert remaining_exchanges(9) == [5, 1] and remaining_exchanges(20) == [12, 4, 1]
    kept = [{count - one for one in remaining_exchanges(count)} - {count - 1} for count in range(17, 32)]
    assert all(one <= {8, 16, 24} for one in kept)


async def test_truncation_auto_drops_the_oldest_exchanges(start: Start, tmp_path: Any) -> None:
    text = config(f"sqlite:///{tmp_path}/x.db", more="models: {demo: {num_ctx: 256}}\n")
    async with start(text, Simulator(say=lambda _: Said("x"))) as run:
        said: Any = [{"role": "user", "content": f"{number} {'word ' * 50}"} for number in range(8)]
        status, document = await ask(run, "POST", "/v1/responses", model="demo", input=said)
        assert (status, document["error"]["code"]) == (400, "context_length_exceeded")
        body: Any = {"model": "demo", "input": said, "truncation": "auto", "instructions": "be kind"}
        response = await run.http.post(f"{run.url}/v1/responses", json=body, headers=A)
        document = await whole(response)
        sent = asked(run.ollama)[-1]["messages"]
        left = int(response.headers["x-gemmapy-truncated"])
        assert document["truncation"] == "auto" and len(sent) == 9 - left < 7
        assert sent[0]["content"] == "be kind" and sent[-1]["content"].startswith("7 ")
        large = [{"role": "user", "content": "word " * 500}]
        status, document = await ask(run, "POST", "/v1/responses", **{**body, "input": large})
        assert (status, document["error"]["code"]) == (400, "context_length_exceeded")


class Tunnel:
    """A TCP proxy to a port, until it is cut."""

    def __init__(self, port: int) -> None:
        self.there = port
        self.writers: list[asyncio.StreamWriter] = []
        self.server: asyncio.Server | None = None

    async def open(self) -> int:
        """Start listening; gives the port."""
        self.server = await asyncio.start_server(self.travel, "127.0.0.1", 0)
        return int(self.server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        if self.server is not None:
            self.server.close()
        for writer in self.writers:
            writer.close()

    async def travel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Python 3.11 would log a cancelled connection as an error of the server.
        with closing(writer), suppress(ConnectionError, asyncio.CancelledError):
            there = await asyncio.open_connection("127.0.0.1", self.there)
            self.writers += [writer, there[1]]
            await asyncio.gather(forward(reader, there[1]), forward(there[0], writer))


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with closing(writer):
        while data := await reader.read(65_536):
            writer.write(data)


async def test_no_answer_is_generated_if_it_could_not_be_stored(start: Start, postgres: PostgresServer) -> None:
    if postgres.process is None:
        await postgres.start()
    url = await postgres.create("going")
    road = Tunnel(postgres.port)
    port = await road.open()
    try:
        async with start(config(url.replace(f":{postgres.port}", f":{port}"), chain="stored, retry")) as run:
            await respond(run)
            road.cut()
            for body in ({}, {"stream": True}, {"background": True}, {"previous_response_id": "resp_1"}):
                status, document = await ask(run, "POST", "/v1/responses", **{**HI, **body})
                assert (status, document["error"]["code"]) == (503, "database_unavailable")
            assert (await ask(run, "GET", "/v1/responses/resp_1"))[0] == 503
            assert len(asked(run.ollama)) == 1
            assert (await ask(run, "POST", "/v1/responses", **HI, store=False))[0] == 200
    finally:
        road.cut()
