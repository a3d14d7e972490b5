"""The Responses API without a store: the stock SDK, and every kind of event."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from pydantic import BaseModel

from proxy.upstreams.demo import Fault, Said, Simulator
from tests.conftest import BARE, Running, Start
from tests.whole.asking import Json, asked, data_url, error_of, user, whole
from tests.whole.responding import KINDS, checked, events_of, final_response

ASK: Json = {"model": "demo", "input": "hi"}
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


async def respond(run: Running, **body: Any) -> Json:
    """A response, checked by the SDK's types."""
    return checked(await whole(await run.http.post(f"{run.url}/v1/responses", json={**ASK, **body})))


async def stream(run: Running, **body: Any) -> list[Json]:
    return await events_of(await run.http.post(f"{run.url}/v1/responses", json={**ASK, "stream": True, **body}))


class City(BaseModel):
    name: str
    people: int


async def test_the_sdk_creates_streams_and_parses(start: Start) -> None:
    async with start() as run, run.client() as client:
        made = await client.responses.create(model="demo", input="hi", instructions="be kind", temperature=0.5)
        assert made.status == "completed" and 'You said: "hi"' in made.output_text and made.temperature == 0.5
        assert made.usage and made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens > 0
        assert made.instructions == "be kind" and made.to_dict()["store"] is False and made.previous_response_id is None
        async with client.responses.stream(model="demo", input="hi", text_format=City) as events:
            snapshots = [one.snapshot async for one in events if one.type == "response.output_text.delta"]
            final = await events.get_final_response()
        assert final.output_text == snapshots[-1] and len(snapshots) > 3 and isinstance(final.output_parsed, City)
        parsed = await client.responses.parse(model="demo", input=[{"role": "user", "content": "x"}], text_format=City)
        assert isinstance(parsed.output_parsed, City)
        assert asked(run.ollama)[0]["messages"][0] == {"role": "system", "content": "be kind"}


async def test_whole_and_streamed_responses_say_the_same(start: Start) -> None:
    said = Said("Good day.", thinking="A greeting.", tool_calls=(("get_weather", {"city": "Rome"}),))
    async with start(ollama=Simulator(say=lambda _: said)) as run:
        one = await respond(run, tools=[WEATHER], model="demo-thinking")
        other = final_response(await stream(run, tools=[WEATHER], model="demo-thinking"))
    for document in (one, other):
        for name in ("id", "created_at", "completed_at", "usage"):
            del document[name]
        for item in document["output"]:
            del item["id"]
            item.pop("call_id", None)
    assert one == other
    assert [item["type"] for item in one["output"]] == ["reasoning", "message", "function_call"]


@pytest.mark.parametrize("summary", [None, "auto"])
async def test_every_kind_of_event_comes_in_order(start: Start, summary: str | None) -> None:
    said = Said("Good day.", thinking="A greeting.", tool_calls=(("get_weather", {"city": "Rome"}),))
    async with start(ollama=Simulator(say=lambda _: said)) as run:
        events = await stream(
            run, tools=[WEATHER], model="demo-thinking", reasoning={"effort": "high", "summary": summary}
        )
    end = final_response(events)
    thought, message, call = end["output"]
    kind, part = ("summary", "reasoning_summary") if summary else ("content", "reasoning")
    assert [one["text"] for one in thought[kind]] == ["A greeting."]
    assert message["content"][0]["text"] == "Good day." and call["arguments"] == '{"city":"Rome"}'
    part_kinds = f"response.{part}_part" if summary else "response.content_part"
    assert list(dict.fromkeys(one["type"] for one in events if one.get("output_index", 0) == 0)) == [
        "response.created", "response.in_progress", "response.output_item.added", f"{part_kinds}.added",
        f"response.{part}_text.delta", f"response.{part}_text.done", f"{part_kinds}.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert {one["type"] for one in events} <= set(KINDS) and len({one["type"] for one in events}) >= 13


async def test_logprobs_come_with_the_text(start: Start) -> None:
    async with start() as run:
        events = await stream(run, include=["message.output_text.logprobs"], top_logprobs=2)
        document = await respond(run, top_logprobs=2)
    (streamed,) = final_response(events)["output"][0]["content"]
    (kept,) = document["output"][0]["content"]
    assert streamed["logprobs"] == kept["logprobs"] and len(kept["logprobs"][0]["top_logprobs"]) == 2
    assert "".join(one["token"] for one in kept["logprobs"]) == kept["text"]


@pytest.mark.parametrize("streams", [True, False])
async def test_a_limit_of_tokens_makes_a_response_incomplete(start: Start, streams: bool) -> None:
    async with start() as run:
        limited = {"max_output_tokens": 3}
        end = final_response(await stream(run, **limited)) if streams else await respond(run, **limited)
    assert (end["status"], end["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert end["output"][0]["status"] == "incomplete" and end["completed_at"] is None


async def test_an_empty_answer_has_an_empty_message(start: Start) -> None:
    async with start(ollama=Simulator(say=lambda _: Said(""))) as run:
        for end in (final_response(await stream(run)), await respond(run)):
            assert [part["text"] for part in end["output"][0]["content"]] == [""]


async def test_a_cut_off_stream_ends_as_failed_and_an_error_before_it_has_its_status(start: Start) -> None:
    faults = [Fault("eof", after=3), Fault("status", status=500)]
    async with start(ollama=Simulator(faults=faults)) as run:
        events = await stream(run)
        end = final_response(events)
        assert end["error"]["code"] == "server_error" and end["output"][0]["status"] == "incomplete"
        assert events[-2]["type"] == "error" and events[-2]["code"] == "upstream_cut"
        error = await error_of(await run.http.post(f"{run.url}/v1/responses", json={**ASK, "stream": True}), 502)
        assert error["code"] == "upstream_server"


async def test_an_image_returned_by_a_function_is_seen(start: Start) -> None:
    call: Any = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
    output: Any = [{"type": "input_text", "text": "here"}, {"type": "input_image", "image_url": data_url()}]
    given: Any = [*user("look"), call, {"type": "function_call_output", "call_id": "c1", "output": output}]
    async with start() as run, run.client() as client:
        response = await client.responses.create(model="demo-vision", input=given)
        sent = asked(run.ollama)[0]["messages"]
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="demo", input=given)
    assert "here" in response.output_text
    assert sent[2]["content"] == "here" and sent[2]["images"] == [data_url().partition(",")[2]]
    assert refused.value.code == "model_not_capable"


async def test_errors_found_after_translation_name_the_field_of_the_responses_api(start: Start) -> None:
    async with start() as run:
        picture = {"type": "input_image", "image_url": data_url()}
        body = {**ASK, "input": [{"role": "user", "content": [picture]}]}
        for streams in (False, True):
            error = await error_of(
                await run.http.post(f"{run.url}/v1/responses", json={**body, "stream": streams}), 400
            )
            assert (error["param"], error["code"]) == ("input", "model_not_capable")
            schema = {"type": "json_schema", "name": "x", "schema": {"type": "nope"}}
            body_ = {**ASK, "input": "hi", "text": {"format": schema}, "stream": streams}
            error = await error_of(await run.http.post(f"{run.url}/v1/responses", json=body_), 400)
            assert (error["param"], error["code"]) == ("text.format", "invalid_schema")


async def test_a_tool_loop_runs_on_the_clients_own_items(start: Start) -> None:
    async with start() as run, run.client() as client:
        items: list[Any] = [{"role": "user", "content": "What says get_weather of Rome?"}]
        first = await client.responses.create(model="demo", input=items, tools=[WEATHER], tool_choice="required")
        call = next(one for one in first.output if one.type == "function_call")
        items += [one.to_dict() for one in first.output]
        items.append({"type": "function_call_output", "call_id": call.call_id, "output": "4 degrees"})
        second = await client.responses.create(model="demo", input=items, tools=[WEATHER])
        assert "4 degrees" in second.output_text
        sent = asked(run.ollama)[-1]["messages"]
        assert [one["role"] for one in sent] == ["user", "assistant", "tool"]
        assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] and sent[2]["tool_name"] == "get_weather"


FORM: Any = {"type": "json_schema", "name": "city", "schema": WEATHER["parameters"], "strict": True}


async def test_parameters_reach_the_model(start: Start) -> None:
    form = FORM
    body = {
        "temperature": 0.1, "top_p": 0.2, "max_output_tokens": 99, "reasoning": {"effort": "low"},
        "text": {"format": form}, "options": {"seed": 5}, "metadata": {"a": "b"}, "user": "ann",
        "parallel_tool_calls": False, "truncation": "auto", "prompt_cache_key": "k", "strange": 1,
        "include": ["reasoning.encrypted_content"], "tools": [WEATHER], "tool_choice": "none",
    }  # fmt: skip
    async with start() as run:
        response = await run.http.post(f"{run.url}/v1/responses", json={**ASK, **body, "model": "demo-thinking"})
        end = checked(await whole(response))
        (sent,) = asked(run.ollama)
    assert sent["options"] == {"temperature": 0.1, "top_p": 0.2, "num_predict": 99, "seed": 5}
    assert sent["think"] == "low" and sent["format"] == WEATHER["parameters"] and "tools" not in sent
    for name in ("temperature", "top_p", "max_output_tokens", "metadata", "user", "parallel_tool_calls", "truncation",
                 "prompt_cache_key", "tool_choice"):  # fmt: skip
        assert end[name] == body[name]
    assert end["text"] == {"format": form} and end["tools"] == [WEATHER]
    notes = response.headers["x-gemmapy-params"]
    assert "strange=ignored" in notes and "truncation=ignored" in notes
    assert "include.reasoning.encrypted_content=ignored" in notes


async def test_the_params_header_uses_the_field_names_of_the_responses_api(start: Start) -> None:
    async with start() as run:
        body = {**ASK, "reasoning": {"effort": "low"}, "parallel_tool_calls": False, "tools": [WEATHER]}
        response = await run.http.post(f"{run.url}/v1/responses", json=body)
        notes = response.headers["x-gemmapy-params"].split(", ")
        assert sorted(notes) == ["parallel_tool_calls=emulated", "reasoning.effort=ignored"]


WRONG: list[tuple[Json, str, str | None]] = [
    ({"input": None}, "input", "missing_required_parameter"),
    ({"input": []}, "input", "empty_array"),
    ({"model": None}, "model", "missing_required_parameter"),
    ({"input": [{"type": "web_search_call"}]}, "input[0].type", "unsupported_item"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_tool"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type", "unsupported_tool"),
    ({"tool_choice": {"type": "file_search"}}, "tool_choice.type", "invalid_value"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", None),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "plugin_missing"),
    ({"conversation": "conv_1"}, "conversation", "plugin_missing"),
    ({"prompt": {"id": "summarize"}}, "prompt", "plugin_missing"),
    ({"background": True}, "background", "plugin_missing"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", "missing_required_parameter"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
    ({"reasoning": {"effort": "much"}}, "reasoning.effort", "invalid_value"),
    ({"include": ["all"]}, "include[0]", "invalid_value"),
    ({"max_output_tokens": 0}, "max_output_tokens", "below_minimum_value"),
    ({"truncation": "some"}, "truncation", "invalid_value"),
    ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    ({"metadata": {"a": "b" * 513}}, "metadata.a", "string_above_max_length"),
    ({"metadata": {"a" * 65: "b"}}, f"metadata.{'a' * 64}", "string_above_max_length"),
    ({"metadata": {str(number): "" for number in range(17)}}, "metadata", "object_above_max_properties"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "unsupported_item"),
    ({"input": [{"type": "function_call_output", "call_id": "c9", "output": "x"}]}, "input", None),
    ({"tools": [WEATHER, WEATHER, {**WEATHER, "description": "other"}]}, "tools[2].name", "duplicate_tool"),
    ({"text": {"verbosity": "loud"}}, "text.verbosity", "invalid_value"),
    ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp", "name": "f"}]}},
     "tool_choice.tools[0].type", "invalid_value"),
]  # fmt: skip


async def test_an_invalid_or_missing_field_is_named_in_the_error(start: Start) -> None:
    async with start() as run:
        for body, param, code in WRONG:
            error = await error_of(await run.http.post(f"{run.url}/v1/responses", json={**ASK, **body}), 400)
            assert (error["param"], error["code"]) == (param, code), body


async def test_an_item_reference_without_a_store_is_an_error_with_the_remedy(start: Start) -> None:
    reference = {"type": "item_reference", "id": "rs_17a419db65322e571173fe4e25799cc400"}
    async with start() as run:
        error = await error_of(await run.http.post(f"{run.url}/v1/responses", json={**ASK, "input": [reference]}), 400)
    assert "plugin 'stored'" in error["message"] and "'store': false" in error["message"]


async def test_a_missing_endpoint_suggests_an_alternative(start: Start) -> None:
    async with start(BARE + "\nlisten: {port: 0, drain: 1, base_path: /ai}\n") as run:
        response = await run.http.post(f"{run.url}/ai/v1/responses/compact", json=ASK)
        error = await error_of(response, 404)
    assert error["code"] == "unknown_url" and "truncation" in error["message"]


async def test_input_tokens_are_estimated_for_the_sdk(start: Start) -> None:
    async with start() as run, run.client() as client:
        count = client.responses.input_tokens.count
        short = await count(model="demo", input="word " * 100)
        assert short.object == "response.input_tokens" and short.input_tokens == 125 + 4
        picture: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": data_url()}]}]
        assert (await count(input=picture)).input_tokens == 504
        raw = await client.responses.input_tokens.with_raw_response.count(
            input="word " * 100, instructions="Be brief.", tools=[WEATHER], text={"format": FORM}
        )
        assert raw.parse().input_tokens > short.input_tokens + 50
        assert "input_tokens=emulated" in raw.headers["x-gemmapy-params"] and not asked(run.ollama)
        wrong: list[Json] = [{"conversation": "c"}, {"prompt": {"id": "x"}}, {"input": 1}, {"input": None}]
        for body in wrong:
            sent = {**ASK, **body}
            error = await error_of(await run.http.post(f"{run.url}/v1/responses/input_tokens", json=sent), 400)
            assert error["param"] == next(iter(body))
        await error_of(await run.http.post(f"{run.url}/v1/responses/input_tokens", json=[]), 400)


async def test_without_a_chat_chain_the_responses_api_is_off(start: Start) -> None:
    async with start(BARE.replace("chat: [], ", "")) as run:
        error = await error_of(await run.http.post(f"{run.url}/v1/responses", json=ASK), 404)
    assert error["code"] == "route_off"
