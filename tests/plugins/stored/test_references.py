"""Item references, as OpenAI's Agents SDK and others send them, with either database."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.upstreams.demo import Said, Simulator
from tests.conftest import Start
from tests.plugins.stored.asking import HI, B, ask, config, respond
from tests.whole.asking import asked, data_url
from tests.whole.test_responses import WEATHER

Json = dict[str, Any]


def ref(id: str) -> Json:
    return {"type": "item_reference", "id": id}


async def test_references_are_sent_and_listed_as_the_items_they_refer_to(start: Start, database_url: str) -> None:
    def say(body: Any) -> Said:
        if body["messages"][-1]["role"] == "tool":
            return Said("4 degrees.")
        return Said("I look.", thinking="Rome.", tool_calls=(("get_weather", {"city": "Rome"}),))

    async with start(config(database_url), Simulator(say=say)) as run:
        body: Json = {"model": "demo-thinking", "tools": [WEATHER]}
        first = await respond(run, **body, instructions="be kind", input="Rome?")
        listed = (await ask(run, "GET", f"/v1/responses/{first['id']}/input_items"))[1]["data"]
        ids = [one["id"] for one in (*listed, *first["output"])]
        result = {"type": "function_call_output", "call_id": first["output"][-1]["call_id"], "output": "4"}
        more: Json = {"input": [*map(ref, ids[:-1]), {"id": ids[-1]}, result], "instructions": "be brief"}
        second = await respond(run, **body, **more)
        told = (await ask(run, "GET", f"/v1/responses/{second['id']}/input_items?order=asc"))[1]["data"]
        assert told[:-1] == [*listed, *first["output"]] and told[-1]["output"] == "4"
        assert (await respond(run, **body, store=False, **more))["output"][0]["content"] == second["output"][0][
            "content"
        ]
        await respond(run, previous_response_id=second["id"], input=[ref(ids[-2]), {"role": "user", "content": "so?"}])
        one, two, last = (sent["messages"] for sent in asked(run.ollama))
        assert [message["role"] for message in two] == ["system", "user", "assistant", "tool"]
        assert two[1] == one[1] and two[0]["content"] == "be brief"
        assert (two[2]["thinking"], two[2]["content"]) == ("Rome.", "I look.") and two[2]["tool_calls"]
        assert [message["content"] for message in last[-3:]] == ["4 degrees.", "I look.", "so?"]


async def test_references_to_deleted_unknown_or_other_callers_items_are_errors(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        mine, gone = await respond(run), await respond(run)
        await ask(run, "DELETE", f"/v1/responses/{gone['id']}")
        own, other = mine["output"][0]["id"], gone["output"][0]["id"]
        for id, who in ((own, B), (other, None), ("msg_none", None), (f"{own[:-1]}7", None), ("resp_\0", None)):
            body = {**HI, "input": [{"role": "user", "content": "x"}, ref(id)]}
            status, document = await ask(run, "POST", "/v1/responses", **({"who": who} if who else {}), **body)
            error = document["error"]
            assert (status, error["param"], error["code"]) == (404, "input[1].id", "item_not_found"), id
            assert id[:8] in error["message"]
        assert len(asked(run.ollama)) == 1, "and the second call is a cache hit"


async def test_references_to_messages_with_images_include_the_images(start: Start, tmp_path: Any) -> None:
    parts = [{"type": "input_text", "text": "see"}, {"type": "input_image", "image_url": data_url()}]
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as run:
        first = await respond(run, model="demo-vision", input=[{"role": "user", "content": parts}])
        (seen,) = (await ask(run, "GET", f"/v1/responses/{first['id']}/input_items"))[1]["data"]
        await respond(run, model="demo-vision", input=[ref(seen["id"]), {"role": "user", "content": "and?"}])
        one, other = asked(run.ollama)
    assert one["messages"][0]["images"] and one["messages"][0] == other["messages"][0]


async def test_references_are_limited_in_number_and_size(
    start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as run:
        ids = [(await respond(run))["output"][0]["id"] for _ in range(2)]
        said = {"role": "user", "content": "so?"}
        twice = await respond(run, input=[*map(ref, ids * 2), said])
        listed = (await ask(run, "GET", f"/v1/responses/{twice['id']}/input_items?order=asc"))[1]["data"]
        assert [one["id"] for one in listed[:2]] == ids and len({one["id"] for one in listed}) == 5
        monkeypatch.setattr("plugins.stored.references.MOST", 1)
        for code in ("array_above_max_length", "input_too_large"):
            status, document = await ask(run, "POST", "/v1/responses", model="demo", input=[*map(ref, ids), said])
            assert (status, document["error"]["param"], document["error"]["code"]) == (400, "input", code)
            monkeypatch.setattr("plugins.stored.references.MOST", 2)
            monkeypatch.setattr("plugins.stored.store.MOST_BYTES", 100)
