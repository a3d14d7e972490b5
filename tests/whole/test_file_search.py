"""The tool `file_search` of responses, through the stock SDK: its output fits the SDK's own types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseFileSearchToolCall, ResponseOutputMessage
from openai.types.responses.response_output_text import AnnotationFileCitation

from tests.conftest import Running, Start
from tests.plugins.documents.asking import A, B, ask
from tests.plugins.documents.storing import LANTERNS, call, config, filled
from tests.plugins.files.asking import KEYS
from tests.whole.responding import events_of, final_response

WHO = "Who was the keeper of the lantern?"
CHAIN = ("stored", "documents", "cache")
INCLUDED: Any = ["file_search_call.results"]


def tool(*stores: str, **more: Any) -> Any:
    return {"type": "file_search", "vector_store_ids": list(stores), **more}


def last_message(run: Running) -> str:
    return str(messages_sent(run)[-1]["content"])


def messages_sent(run: Running) -> Any:
    return [one.body for one in run.ollama.seen if one.path == "/api/chat" and one.body.get("messages")][-1]["messages"]


def file(folder: Path) -> str:
    return f"sqlite:///{folder}/x.db"


async def test_an_answer_uses_files_and_cites_them(start: Start, tmp_path: Path) -> None:
    async with start(config(file(tmp_path), tmp_path, CHAIN)) as run, run.client(api_key="a-key") as client:
        store, id = await filled(run)
        await filled(run, B)
        made = await client.responses.create(model="demo", input=WHO, tools=[tool(store)], include=INCLUDED)
        search, message = made.output
        assert isinstance(search, ResponseFileSearchToolCall) and isinstance(message, ResponseOutputMessage)
        assert search.id.startswith("fs_") and (search.status, search.queries) == ("completed", [WHO])
        assert search.results and (search.results[0].file_id, search.results[0].filename) == (id, "lanterns.txt")
        assert search.results[0].text == LANTERNS.decode() and 0 < (search.results[0].score or 0) <= 1
        assert f"[1] lanterns.txt\n{LANTERNS.decode()}" in last_message(run)
        content = message.content[0]
        assert content.type == "output_text" and content.annotations
        for one in content.annotations:
            AnnotationFileCitation.model_validate(one.model_dump(), strict=True)
            assert isinstance(one, AnnotationFileCitation) and (one.file_id, one.filename) == (id, "lanterns.txt")
            assert content.text[: one.index].endswith("[1]")
        assert made.tools[0].model_dump(exclude_none=True) == tool(store)
        kept = await client.responses.retrieve(made.id)
        assert kept.output == made.output
        async with client.responses.stream(model="demo", input=WHO, tools=[tool(store)], include=INCLUDED) as events:
            final = await events.get_final_response()
        assert [one.type for one in final.output] == BOTH and final.output_text == made.output_text
        heard = final.output[1]
        assert heard.type == "message" and heard.content[0].type == "output_text"
        assert heard.content[0].annotations == content.annotations
        await check_next_turns(client, made, store)


async def check_next_turns(client: openai.AsyncOpenAI, made: Any, store: str) -> None:
    """Continue by ID and by sending the items again; without `include` a search shows no results."""
    more = await client.responses.create(
        model="demo", input="And the light?", previous_response_id=made.id, tools=[tool(store)]
    )
    search = more.output[0]
    assert isinstance(search, ResponseFileSearchToolCall) and search.results is None
    items = [one async for one in client.responses.input_items.list(more.id, order="asc")]
    assert [one.type for one in items] == ["message", "file_search_call", "message", "message"]
    again = [one.model_dump(exclude_none=True) for one in made.output]
    sent: Any = [{"role": "user", "content": WHO}, *again, {"role": "user", "content": "Thanks."}]
    assert [one.type for one in (await client.responses.create(model="demo", input=sent)).output] == ["message"]


async def test_search_events_are_in_order_live_and_when_replayed(start: Start, tmp_path: Path) -> None:
    async with start(config(file(tmp_path), tmp_path, CHAIN)) as run:
        store, _ = await filled(run)
        body = {"model": "demo", "input": WHO, "tools": [tool(store)], "include": INCLUDED, "stream": True}
        async with run.http.post(f"{run.url}/v1/responses", json=body, headers=A) as response:
            assert response.headers["x-gemmapy-rag"] == "1 passage of 1"
            end = final_response(await events_of(response))
        assert [one["type"] for one in end["output"]] == ["file_search_call", "message"]
        assert end["output"][1]["content"][0]["annotations"]
        async with run.http.get(f"{run.url}/v1/responses/{end['id']}", headers=A) as response:
            assert (await response.json())["output"] == end["output"]
        body["background"] = True
        async with run.http.post(f"{run.url}/v1/responses", json=body, headers=A) as response:
            live = await events_of(response)
        async with run.http.get(
            f"{run.url}/v1/responses/{final_response(live)['id']}?stream=true", headers=A
        ) as response:
            assert await events_of(response) == live


async def test_a_conversation_stores_file_searches_and_citations(start: Start, tmp_path: Path) -> None:
    async with start(config(file(tmp_path), tmp_path, ("conversations", *CHAIN[1:]))) as run:
        store, _ = await filled(run)
        search = {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["x"], "results": None}
        talk = (await call(run, "POST", "/conversations", A, 200, items=[search]))["id"]
        body = {"model": "demo", "input": WHO, "conversation": talk, "tools": [tool(store)]}
        made = await call(run, "POST", "/responses", A, 200, **body)
        assert [one["type"] for one in made["output"]] == BOTH
        listed = (await call(run, "GET", f"/conversations/{talk}/items?order=asc"))["data"]
        assert [one["type"] for one in listed] == ["file_search_call", "message", *BOTH]
        assert [one["queries"] for one in listed[::2]] == [["x"], [WHO]]
        assert listed[3]["content"] == made["output"][1]["content"] and listed[3]["content"][0]["annotations"]
        assert all(one["content"] for one in messages_sent(run)), "no message without content reaches the model"
        async with run.http.get(f"{run.url}/api/conversations/{talk}/export", headers=A) as response:
            export = await response.json()
        assert [one["items"] for one in export["messages"] if "items" in one] == [[listed[0]], listed[2:]]
        again = [{"role": "user", "content": "Before."}, *made["output"], {"role": "user", "content": "Thanks."}]
        await call(run, "POST", "/responses", A, 200, model="demo", conversation=talk, input=again)


async def test_a_conversation_includes_search_results_only_on_request(start: Start, tmp_path: Path) -> None:
    async with start(config(file(tmp_path), tmp_path, ("conversations", *CHAIN[1:]))) as run:
        store, _ = await filled(run)
        body = {"model": "demo", "input": WHO, "tools": [tool(store)], "include": INCLUDED, "stream": True}
        headers = {**A, "x-gemmapy-conversation": "t"}
        async with run.http.post(f"{run.url}/v1/responses", json=body, headers=headers) as response:
            search = final_response(await events_of(response))["output"][0]
        bare, full = [
            (await call(run, "GET", f"/conversations/t/items?order=asc{more}"))["data"][1]
            for more in ("", "&include=file_search_call.results")
        ]
        ResponseFileSearchToolCall.model_validate(full)
        assert bare["results"] is None and full["results"] == search["results"] and search["results"]


BOTH = ["file_search_call", "message"]
CHOICES: list[tuple[Any, list[str]]] = [
    ("auto", BOTH),
    ("required", BOTH),
    ({"type": "file_search"}, BOTH),
    ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "file_search"}]}, BOTH),
    ("none", ["message"]),
    ({"type": "function", "name": "look"}, ["function_call"]),
    ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]}, ["message"]),
]
LOOK: Any = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}


async def test_tool_choice_decides_whether_files_are_searched(start: Start, tmp_path: Path) -> None:
    async with start(config(file(tmp_path), tmp_path)) as run, run.client(api_key="a-key") as client:
        store, _ = await filled(run)
        for choice, kinds in CHOICES:
            tools = [tool(store), LOOK]
            made = await client.responses.create(model="demo", input=WHO, tools=tools, tool_choice=choice)
            assert [one.type for one in made.output] == kinds, choice
        nothing = await client.responses.create(model="demo", input="Which volcano?", tools=[tool(store)])
        assert nothing.output[0].type == "file_search_call" and last_message(run) == "Which volcano?"
        year = {"type": "eq", "key": "year", "value": 1}
        filtered = await client.responses.create(model="demo", input=WHO, tools=[tool(store, filters=year)])
        assert last_message(run) == WHO and filtered.output_text
        high = await client.responses.create(
            model="demo", input=WHO, tools=[tool(store, ranking_options={"score_threshold": 1})], include=INCLUDED
        )
        assert isinstance(high.output[0], ResponseFileSearchToolCall) and high.output[0].results == []


BAD: list[tuple[dict[str, Any], str, int]] = [
    ({"tools": [{"type": "file_search"}]}, "tools[0].vector_store_ids", 400),
    ({"tools": [tool()]}, "tools[0].vector_store_ids", 400),
    ({"tools": [LOOK, tool("vs_1")]}, "tools[1].vector_store_ids", 404),
    ({"tools": [tool("STORE", max_num_results=51)]}, "tools[0].max_num_results", 400),
    ({"tools": [tool("STORE", filters={"year": 1})]}, "tools[0].filters.type", 400),
    ({"tools": [tool("STORE", ranking_options={"ranker": "x"})]}, "tools[0].ranking_options.ranker", 400),
    ({"tools": [tool("STORE", color="red")]}, "tools[0].color", 400),
    ({"tools": [tool("STORE"), tool("STORE")]}, "tools[1]", 400),
    ({"tools": [LOOK], "tool_choice": {"type": "file_search"}}, "tool_choice.type", 400),
    ({"tools": [tool("STORE")], "tool_choice": {"type": "web_search_preview"}}, "tool_choice.type", 400),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", 400),
]  # fmt: skip


async def test_invalid_requests_name_the_field_and_other_callers_stores_are_not_found(
    start: Start, tmp_path: Path
) -> None:
    async with start(config(file(tmp_path), tmp_path)) as run:
        store, _ = await filled(run)
        for body, param, status in BAD:
            text = {**body, "tools": [{**one, "vector_store_ids": [store]} if one.get("vector_store_ids") == ["STORE"]
                                      else one for one in body["tools"]]}  # fmt: skip
            answer = await call(run, "POST", "/responses", A, status, model="demo", input=WHO, **text)
            assert answer["error"]["param"] == param, answer
        mine = {"model": "demo", "input": WHO, "tools": [tool(store)]}
        answer = await call(run, "POST", "/responses", B, 404, **mine)
        assert answer["error"]["code"] == "vector_store_not_found"
        chat = {"model": "demo", "messages": [{"role": "user", "content": WHO}], "file_search": tool(store)}
        assert (await call(run, "POST", "/chat/completions", A, 400, **chat))["error"]["param"] == "file_search"
    async with start(f"chains: {{chat: []}}\n{KEYS}") as run:
        answer = await call(run, "POST", "/responses", A, 400, **mine)
        assert answer["error"]["code"] == "plugin_missing" and "'documents'" in answer["error"]["message"]


async def test_answers_from_documents_without_the_tool_have_citations_too(start: Start, tmp_path: Path) -> None:
    async with start(config(file(tmp_path), tmp_path)) as run, run.client(api_key="a-key") as client:
        await ask(run, "POST", "/documents", A, 201, title="L", content=LANTERNS.decode(), source="https://l.example",
                  wait=30)  # fmt: skip
        made = await client.responses.create(model="demo", input=WHO, extra_body={"rag": True})
        (message,) = made.output
        assert isinstance(message, ResponseOutputMessage) and message.content[0].type == "output_text"
        cited = message.content[0].annotations[0]
        assert cited.type == "url_citation" and (cited.url, cited.title) == ("https://l.example", "L")
        assert message.content[0].text[cited.start_index : cited.end_index] == "[1]"
        with pytest.raises(openai.BadRequestError):
            await client.responses.create(model="demo", input=WHO, tools=[{"type": "web_search"}])
