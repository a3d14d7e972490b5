"""The simulator answers as Ollama does."""

import json
import re
from collections.abc import AsyncIterator

import pytest

from proxy.upstreams.demo import Said, Simulator

from .asking import CLOCK, WEATHER, Client, asking, calls, contents, user

PIXEL = "iVBORw0KGgo="


@pytest.fixture
def simulator() -> Simulator:
    return Simulator()


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[Client]:
    async with asking(simulator) as client:
        yield client


async def test_the_same_request_gets_the_same_honest_answer(client: Client) -> None:
    texts = {contents(await client.lines("/api/chat", model="demo", messages=user("Hi"))) for _ in range(3)}
    assert texts == {'This is a simulated answer; no model is running. You said: "Hi" (1 message)'}


async def test_a_stream_has_one_object_per_line_and_metrics_on_the_last(client: Client) -> None:
    async with client.send("/api/chat", json={"model": "Demo", "messages": user("Hi")}) as reply:
        assert reply.content_type == "application/x-ndjson"
        *lines, last = [json.loads(line) async for line in reply.content]
    assert {line["model"] for line in lines} == {"Demo"}
    assert all(set(line) == {"model", "created_at", "message", "done"} for line in lines)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", last["created_at"])
    assert last["done"] is True and last["done_reason"] == "stop" and last["message"]["content"] == ""
    assert last["eval_count"] > len(lines)
    assert last["total_duration"] >= last["load_duration"] > 0
    assert "prompt_eval_cached_count" not in last


async def test_without_a_stream_the_lines_come_as_one_document(client: Client) -> None:
    lines = await client.lines("/api/chat", model="demo", messages=user("Hi"))
    status, document = await client.ask("/api/chat", model="demo", messages=user("Hi"))
    assert status == 200
    assert document["message"] == {"role": "assistant", "content": contents(lines)}
    assert document["done"] is True and document["eval_count"] == lines[-1]["eval_count"]


async def test_go_escapes_and_still_says_the_same(client: Client) -> None:
    async with client.send("/api/chat", json={"model": "demo", "messages": user("<b>&ü")}) as reply:
        raw = await reply.read()
    assert rb"\u003c" in raw and b"<" not in raw
    assert "<b>&ü" in contents([json.loads(line) for line in raw.splitlines()])


async def test_native_tool_calls_come_all_on_the_done_line(client: Client) -> None:
    messages = user("Get the weather, then tell time.")
    found = list(calls(await client.lines("/api/chat", model="demo", messages=messages, tools=[WEATHER, CLOCK])))
    assert [done for done, _ in found] == [True, True]
    assert [call["function"]["index"] for _, call in found] == [0, 1]
    assert all(re.fullmatch(r"[A-Za-z0-9]{32}", call["id"]) for _, call in found)
    assert found[0][1]["function"]["arguments"] == {"city": "city"}


async def test_rendered_tool_calls_come_before_the_done_line_with_index_zero(client: Client) -> None:
    messages = user("get_weather and tellTime")
    found = list(
        calls(await client.lines("/api/chat", model="demo-rendered", messages=messages, tools=[WEATHER, CLOCK]))
    )
    assert [done for done, _ in found] == [False, False]
    assert [call["function"]["index"] for _, call in found] == [0, 0]
    assert all(re.fullmatch(r"call_[a-z0-9]{8}", call["id"]) for _, call in found)


async def test_after_a_tool_message_its_result_is_quoted(client: Client) -> None:
    call = {"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
    messages = [
        *user("get_weather"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_name": "get_weather", "content": "sunny"},
    ]
    _, document = await client.ask("/api/chat", model="demo", messages=messages, tools=[WEATHER])
    assert "The tool said: sunny" in document["message"]["content"]
    assert "tool_calls" not in document["message"]


async def test_tool_schemas_are_read_as_the_typed_subset(client: Client) -> None:
    properties = {"unit": {"const": "K", "default": "K", "type": "string"}}
    tool = {"function": {"name": "go", "parameters": {"type": "object", "properties": properties}}}
    _, document = await client.ask("/api/chat", model="demo", messages=user("go"), tools=[tool])
    assert document["message"]["tool_calls"][0]["function"]["arguments"] == {"unit": "unit"}


async def test_a_capable_model_thinks_unless_told_not_to(client: Client) -> None:
    lines = await client.lines("/api/chat", model="demo-thinking", messages=user("Hi"))
    assert "".join(line["message"].get("thinking", "") for line in lines).startswith("The last of 1 message")
    _, plain = await client.ask("/api/chat", model="demo-thinking", messages=user("Hi"), think=False)
    assert "thinking" not in plain["message"]


async def test_generating_natively_leaves_the_thinking_in_the_text(client: Client) -> None:
    _, document = await client.ask("/api/generate", model="demo-thinking", prompt="Hi")
    assert document["response"].startswith("<think>\n")


async def test_generate_has_a_response_and_a_context_unless_raw(client: Client) -> None:
    lines = await client.lines("/api/generate", model="demo", prompt="Hi")
    assert '"Hi"' in "".join(line["response"] for line in lines) and lines[-1]["context"]
    _, raw = await client.ask("/api/generate", model="demo", prompt="Hi", raw=True)
    assert "context" not in raw


async def test_num_predict_cuts_the_answer(client: Client) -> None:
    options = {"num_predict": 5}
    lines = await client.lines("/api/chat", model="demo", messages=user("Hi"), options=options)
    assert lines[-1]["done_reason"] == "length" and lines[-1]["eval_count"] == 5
    assert contents(lines) == "This is a simulate"[: len(contents(lines))]


@pytest.mark.parametrize("model", ["demo", "demo-rendered"])
async def test_calls_that_are_complete_before_the_limit_are_kept(
    client: Client, simulator: Simulator, model: str
) -> None:
    simulator.say = lambda body: Said(tool_calls=(("get_weather", {"city": "Rome"}),) * 200)
    ask = {"model": model, "messages": user("Hi"), "tools": [WEATHER]}
    lines = await client.lines("/api/chat", **ask, options={"num_predict": 100})
    count = len(list(calls(lines)))
    assert 0 < count < 20 and (lines[-1]["done_reason"], lines[-1]["eval_count"]) == ("length", 100)
    lines = await client.lines("/api/chat", **ask, options={"num_ctx": 8192})
    assert len(list(calls(lines))) == 200
    assert lines[-1]["done_reason"] == "stop" and lines[-1]["eval_count"] > 200


async def test_zero_num_predict_is_one_token_natively_and_no_limit_rendered(client: Client) -> None:
    body = {"messages": user("Hi"), "options": {"num_predict": 0}}
    _, native = await client.ask("/api/chat", model="demo", **body)
    _, rendered = await client.ask("/api/chat", model="demo-rendered", **body)
    assert (native["eval_count"], native["done_reason"]) == (1, "length")
    assert rendered["done_reason"] == "stop"


async def test_stop_strings_are_not_in_the_text(client: Client) -> None:
    options = {"stop": ["never", " no "]}
    _, document = await client.ask("/api/chat", model="demo", messages=user("Hi"), options=options)
    assert document["message"]["content"] == "This is a simulated answer;"
    assert document["done_reason"] == "stop"


async def test_logprobs_cover_every_token_and_some_lines_have_nothing_else(client: Client) -> None:
    lines = await client.lines("/api/chat", model="demo", messages=user("Hi"), logprobs=True, top_logprobs=2)
    entries = [entry for line in lines for entry in line.get("logprobs", ())]
    assert "".join(entry["token"] for entry in entries) == contents(lines)
    assert any(line["logprobs"] and not line["message"]["content"] for line in lines[:-1])
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in entries)
    assert bytes(entries[0]["bytes"]).decode() == entries[0]["token"]


async def test_old_messages_are_dropped_without_a_word(client: Client) -> None:
    messages = [{"role": "system", "content": "S"}, *user("word " * 300), *user("Hi")]
    body = {"model": "demo", "messages": messages, "options": {"num_ctx": 100}}
    status, document = await client.ask("/api/chat", **body)
    assert status == 200 and "(2 messages)" in document["message"]["content"]
    status, error = await client.error("/api/chat", **body, truncate=False)
    inner = json.loads(error)["error"]
    assert status == 400 and inner["type"] == "exceed_context_size_error" and inner["n_ctx"] == 100


async def test_a_rendered_model_cuts_one_long_message_unless_shift_is_off(client: Client) -> None:
    body = {"model": "demo-rendered", "messages": user("word " * 300), "options": {"num_ctx": 100}}
    status, document = await client.ask("/api/chat", **body)
    assert status == 200 and document["prompt_eval_count"] == 50
    status, error = await client.error("/api/chat", **body, shift=False)
    assert status == 400 and error.startswith("the prompt is longer than the context length")


async def test_without_shift_the_end_of_the_context_ends_the_answer(client: Client) -> None:
    body = {"model": "demo", "messages": user("Hi"), "options": {"num_ctx": 24}, "shift": False}
    _, document = await client.ask("/api/chat", **body)
    assert document["done_reason"] == "length"
    assert document["prompt_eval_count"] + document["eval_count"] == 24


async def test_a_cached_prompt_is_counted_in_full_and_by_its_cached_part(client: Client) -> None:
    counts = []
    for text in ("Hello there", "Hello there", "Other"):
        _, document = await client.ask("/api/chat", model="demo", messages=user(text))
        counts.append((document["prompt_eval_count"], document.get("prompt_eval_cached_count", 0)))
    assert counts[0][1] == 0 and counts[1] == (counts[0][0], counts[0][0] - 1)
    assert 0 < counts[2][1] < counts[1][1]


async def test_an_old_server_has_no_ids_no_logprobs_no_capabilities() -> None:
    async with asking(Simulator(profile="old")) as client:
        body = {"model": "demo", "messages": user("get_weather")}
        _, called = await client.ask("/api/chat", **body, tools=[WEATHER])
        _, first = await client.ask("/api/chat", **body, logprobs=True)
        _, again = await client.ask("/api/chat", **body)
        entry = (await client.get("/api/tags"))["models"][0]
    assert "id" not in called["message"]["tool_calls"][0]
    assert "logprobs" not in first and "prompt_eval_count" in first
    assert "prompt_eval_count" not in again
    assert "capabilities" not in entry and "context_length" not in entry["details"]


async def test_what_a_test_says_is_cut_as_the_test_cuts_it(simulator: Simulator, client: Client) -> None:
    simulator.say = lambda body: Said(pieces=("Grüß", " ", "Gott 🙂")) if body["model"] == "demo" else None
    lines = await client.lines("/api/chat", model="demo", messages=user("Hi"))
    assert [line["message"]["content"] for line in lines] == ["Grüß", " ", "Gott 🙂", ""]
    simulator.say = lambda _: Said("Yes.", done_reason="load")
    _, document = await client.ask("/api/chat", model="demo", messages=user("Hi"))
    assert (document["message"]["content"], document["done_reason"]) == ("Yes.", "load")


async def test_endless_repetition_ends_without_a_last_line_where_ollama_generates(
    simulator: Simulator, client: Client
) -> None:
    simulator.say = lambda _: Said(pieces=("ha ",) * 50)
    body = {"messages": user("Hi")}
    given_up = await client.lines("/api/chat", model="demo-rendered", **body)
    assert len(given_up) == 30 and not given_up[-1]["done"]
    assert (await client.lines("/api/chat", model="demo", **body))[-1]["done"]
    _, document = await client.ask("/api/chat", model="demo-rendered", **body)
    assert document["done"] is False


async def test_json_of_no_schema_is_asked_for_by_name(client: Client) -> None:
    _, document = await client.ask("/api/chat", model="demo", messages=user("Hi"), format="json")
    assert json.loads(document["message"]["content"]) == {"simulated": True, "said": "Hi"}
    status, error = await client.error("/api/chat", model="demo", messages=user("Hi"), format="xml")
    assert status == 500 and 'expected "json" or a valid JSON Schema object' in error


async def test_images_are_seen_by_a_vision_model_only(client: Client) -> None:
    _, document = await client.ask("/api/chat", model="demo-vision", messages=user("Hi", images=[PIXEL]))
    assert "(1 message, 1 image)" in document["message"]["content"]
    assert document["prompt_eval_count"] > 768


async def test_debugging_renders_the_prompt_and_nothing_else(client: Client) -> None:
    body = {"model": "demo", "messages": user("Hi"), "_debug_render_only": True}
    _, document = await client.ask("/api/chat", **body)
    assert "Hi" in document["_debug_info"]["rendered_template"]
