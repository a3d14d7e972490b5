"""The stock OpenAI client against a running server: everything that applications do with it."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, AsyncStream, OpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, Field

from proxy.upstreams.demo import CATALOGUE, Fault, Model, Said, Simulator
from tests.conftest import ASK, HI, Running, Start
from tests.whole.asking import asked, data_url, dead_url, function, picture, user

KEYED = "chains: {chat: [], embeddings: []}\nkeys: {alice: right-key}"
SLASHED = (*CATALOGUE, Model("hf.co/someone/tiny:Q4_K_M", frozenset({"completion"})))


class Street(BaseModel):
    name: str
    number: int = Field(ge=1)


class City(BaseModel):
    name: str
    people: int
    streets: list[Street]
    twin: str | None


class GetWeather(BaseModel):
    """The weather in a city."""

    city: str
    unit: str = Field(json_schema_extra={"enum": ["celsius", "fahrenheit"]})


def blocking(run: Running, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{run.url}/v1", api_key="none", max_retries=0, **options)


# --- chats -----------------------------------------------------------------------------------------


async def test_the_blocking_client_gets_the_same_answer_whole_and_streamed(start: Start) -> None:
    def ask(run: Running) -> tuple[str | None, str]:
        with blocking(run) as client:
            whole = client.chat.completions.create(**ASK)
            with client.chat.completions.create(**ASK, stream=True) as stream:
                pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        return whole.choices[0].message.content, "".join(pieces)

    async with start() as run:
        whole, pieces = await asyncio.to_thread(ask, run)
    assert whole == pieces and "simulated" in pieces


async def test_an_answer_has_every_field_of_the_clients_types(start: Start) -> None:
    async with start() as run, run.client() as client:
        whole = await client.chat.completions.create(**ASK)
    assert whole.id.startswith("chatcmpl-") and whole.object == "chat.completion"
    assert whole.model == "demo" and whole.created > 1_600_000_000
    assert whole.system_fingerprint is not None and whole.system_fingerprint.startswith("fp_")
    assert whole.choices[0].finish_reason == "stop" and whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.tool_calls is None and whole.choices[0].message.refusal is None
    assert whole.usage is not None and whole.usage.total_tokens == (
        whole.usage.prompt_tokens + whole.usage.completion_tokens
    )
    ChatCompletion.model_validate(whole.model_dump(), strict=True)


async def test_a_long_conversation_of_every_role_is_understood(start: Start) -> None:
    messages: Any = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "what"}, {"type": "text", "text": "weather?"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Ulm"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "4 degrees, fog"},
    ]
    tools: Any = [function("get_weather")]
    async with start() as run, run.client() as client:
        whole = await client.chat.completions.create(model="demo", messages=messages, tools=tools)
        sent = asked(run.ollama)[0]["messages"]
    assert "4 degrees, fog" in (whole.choices[0].message.content or "")
    assert [one["role"] for one in sent] == ["system", "user", "assistant", "tool"]
    assert sent[1]["content"] == "what\nweather?"
    assert sent[2]["tool_calls"][0]["function"]["arguments"] == {"city": "Ulm"}
    assert sent[3]["tool_name"] == "get_weather" and sent[3]["tool_call_id"] == "call_1"


async def test_a_chat_that_ends_with_an_assistant_message_is_answered(start: Start) -> None:
    spoken = ({"role": "assistant", "name": name, "content": f"I am {name}."} for name in ("alice", "bob"))
    messages: Any = [*HI, *spoken]
    async with start() as run, run.client() as client:
        raw = await client.chat.completions.with_raw_response.create(model="demo", messages=messages)
        sent = asked(run.ollama)[0]["messages"]
    assert raw.parse().choices[0].finish_reason == "stop"
    assert sent == [*HI, {"role": "assistant", "content": "I am alice.\n\nI am bob."}]
    assert "messages=changed" in raw.headers["x-gemmapy-params"]


async def test_the_stream_helper_gives_content_and_usage(start: Start) -> None:
    async with (
        start() as run,
        run.client() as client,
        client.chat.completions.stream(**ASK, stream_options={"include_usage": True}) as stream,
    ):
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert "simulated" in (final.choices[0].message.content or "")
    assert final.usage is not None and final.usage.completion_tokens > 0


async def test_a_thinking_models_reasoning_is_separate_from_its_answer(start: Start) -> None:
    async with start() as run, run.client() as client:
        whole = await client.chat.completions.create(model="demo-thinking", messages=HI)  # type: ignore[arg-type]
        message = whole.choices[0].message
    assert message.model_extra is not None and "message" in message.model_extra["reasoning_content"]
    assert "simulated" in (message.content or "")


async def test_logprobs_come_with_their_alternatives(start: Start) -> None:
    async with start() as run, run.client() as client:
        whole = await client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2)
        stream = await client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2, stream=True)
        chunks = [chunk async for chunk in stream]
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(one.token for one in logprobs.content) == whole.choices[0].message.content
    assert {len(one.top_logprobs) for one in logprobs.content} == {2}
    tokens = [
        token.token
        for chunk in chunks
        if chunk.choices and (found := chunk.choices[0].logprobs)
        for token in found.content or ()
    ]
    assert "".join(tokens) == whole.choices[0].message.content


async def test_an_image_reaches_a_model_that_sees(start: Start) -> None:
    messages: Any = picture(data_url())
    async with start() as run, run.client() as client:
        whole = await client.chat.completions.create(model="demo-vision", messages=messages)
        sent = asked(run.ollama)[0]["messages"]
    assert "1 image" in (whole.choices[0].message.content or "")
    assert len(sent) == 1 and sent[0]["content"] == "What is this?" and len(sent[0]["images"]) == 1


# --- structured outputs ----------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["demo", "demo-rendered", "demo-thinking"])
async def test_parse_gives_an_instance_of_the_pydantic_model(start: Start, model: str) -> None:
    async with start() as run, run.client() as client:
        parsed = await client.chat.completions.parse(model=model, messages=user("Ulm?"), response_format=City)  # type: ignore[arg-type]
    city = parsed.choices[0].message.parsed
    assert isinstance(city, City) and city.streets[0].number >= 1


async def test_the_stream_helper_parses_into_the_pydantic_model(start: Start) -> None:
    async with (
        start() as run,
        run.client() as client,
        client.chat.completions.stream(model="demo", messages=user("Ulm?"), response_format=City) as stream,  # type: ignore[arg-type]
    ):
        final = await stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, City)


async def test_parse_gives_the_arguments_of_a_strict_tool(start: Start) -> None:
    async with start() as run, run.client() as client:
        parsed = await client.chat.completions.parse(
            model="demo",
            messages=user("Use GetWeather for Ulm."),  # type: ignore[arg-type]
            tools=[pydantic_function_tool(GetWeather)],
        )
    message = parsed.choices[0].message
    assert message.tool_calls is not None
    arguments = message.tool_calls[0].function.parsed_arguments
    assert isinstance(arguments, GetWeather) and arguments.unit == "celsius"
    assert parsed.choices[0].finish_reason == "tool_calls" and message.content is None


async def test_the_stream_helper_parses_the_arguments_of_a_strict_tool(start: Start) -> None:
    async with (
        start() as run,
        run.client() as client,
        client.chat.completions.stream(
            model="demo-rendered",
            messages=user("Use GetWeather for Ulm."),  # type: ignore[arg-type]
            tools=[pydantic_function_tool(GetWeather)],
        ) as stream,
    ):
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls is not None and isinstance(calls[0].function.parsed_arguments, GetWeather)


async def test_parse_raises_for_an_answer_cut_off_by_its_length(start: Start) -> None:
    async with start() as run, run.client() as client:
        with pytest.raises(openai.LengthFinishReasonError):
            await client.chat.completions.parse(
                model="demo",
                messages=HI,  # type: ignore[arg-type]
                response_format=City,
                max_completion_tokens=2,
            )


async def parsed_stream(client: AsyncOpenAI) -> Any:
    async with client.chat.completions.stream(**ASK, response_format=City) as helper:
        return await helper.get_final_completion()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_does_not_match_its_schema_is_an_error(start: Start, stream: bool) -> None:
    async with start(ollama=Simulator(say=lambda body: Said('{"name": 3}'))) as run, run.client() as client:
        with pytest.raises(openai.APIError) as caught:
            await (parsed_stream(client) if stream else client.chat.completions.parse(**ASK, response_format=City))
    assert caught.value.code == "upstream_invalid_answer"


# --- tools -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["demo", "demo-rendered"])
async def test_parallel_calls_have_ids_and_indexes_of_their_own(start: Start, model: str) -> None:
    tools: Any = [function("get_weather"), function("tell_time")]
    messages: Any = user("get_weather and tell_time, please")
    async with start() as run, run.client() as client:
        whole = await client.chat.completions.create(model=model, messages=messages, tools=tools)
        stream = await client.chat.completions.create(model=model, messages=messages, tools=tools, stream=True)
        chunks = [chunk async for chunk in stream]
    calls = whole.choices[0].message.tool_calls or []
    assert [call.function.name for call in calls if call.type == "function"] == ["get_weather", "tell_time"]
    assert len({call.id for call in calls}) == 2
    deltas = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    assert [delta.index for delta in deltas] == [0, 1] and len({delta.id for delta in deltas}) == 2
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


# --- embeddings ------------------------------------------------------------------------------------


async def test_embeddings_are_the_same_in_both_encodings(start: Start) -> None:
    async with start() as run, run.client() as client:
        texts = ["one", "two", "three"]
        packed = await client.embeddings.create(model="demo-embed", input=texts)
        listed = await client.embeddings.create(model="demo-embed", input=texts, encoding_format="float")
    assert [one.index for one in packed.data] == [0, 1, 2]
    assert len(packed.data[0].embedding) == 384
    for one, other in zip(packed.data, listed.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert math.hypot(*one.embedding) == pytest.approx(1, abs=1e-4)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > 0


async def test_embeddings_can_be_shortened(start: Start) -> None:
    async with start() as run, run.client() as client:
        short = await client.embeddings.create(model="demo-embed", input="one", dimensions=8)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="demo-embed", input="one", dimensions=10_000)
    assert len(short.data[0].embedding) == 8
    assert math.hypot(*short.data[0].embedding) == pytest.approx(1, abs=1e-4)
    assert caught.value.param == "dimensions"


@pytest.mark.filterwarnings("ignore:open_binary is deprecated:DeprecationWarning")  # raised inside bpe_openai
async def test_token_lists_are_embedded_as_the_texts_that_they_mean(start: Start) -> None:
    import bpe_openai  # here, where its warning is expected

    encoding = bpe_openai.get_encoding("cl100k_base")
    texts = ["Grüße aus Ulm", "日本語 🦙"]
    tokens = [list(encoding.encode(text)) for text in texts]
    async with start() as run, run.client() as client:
        meant = await client.embeddings.create(model="demo-embed", input=texts)
        given = await client.embeddings.create(model="demo-embed", input=tokens)
        single = await client.embeddings.create(model="demo-embed", input=tokens[1])
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="demo-embed", input=[[2_000_000_000]])
        assert asked(run.ollama, "/api/embed")[1]["input"] == texts
    assert [one.embedding for one in given.data] == [one.embedding for one in meant.data]
    assert single.data[0].embedding == meant.data[1].embedding
    assert caught.value.param == "input"


async def test_a_long_list_is_split_and_comes_back_in_order(start: Start) -> None:
    yaml = "chains: {embeddings: []}\nupstreams: {local: {ollama: $OLLAMA, embed_batch: 3}}"
    texts = [f"text {index}" for index in range(8)]
    async with start(yaml) as run, run.client() as client:
        together = await client.embeddings.create(model="demo-embed", input=texts, encoding_format="float")
        last = await client.embeddings.create(model="demo-embed", input=texts[-1], encoding_format="float")
        assert [len(body["input"]) for body in asked(run.ollama, "/api/embed")] == [3, 3, 2, 1]
    assert together.data[7].embedding == last.data[0].embedding
    assert together.usage.prompt_tokens > last.usage.prompt_tokens


# --- models ----------------------------------------------------------------------------------------


async def test_models_are_listed_and_found_by_any_id(start: Start) -> None:
    name = "hf.co/someone/tiny:Q4_K_M"
    async with start(ollama=Simulator(models=SLASHED)) as run, run.client() as client:
        listed = {model.id: model async for model in client.models.list()}
        one = await client.models.retrieve(name)
        short = await client.models.retrieve("demo")
        chat = await client.chat.completions.create(model=name, messages=HI)  # type: ignore[arg-type]
    assert {"demo:latest", "demo-embed:latest", name} <= set(listed)
    assert one.id == name and one.object == "model" and one.owned_by == "someone"
    assert short.id.startswith("demo")
    assert chat.model == name


async def test_an_unknown_model_is_not_found(start: Start) -> None:
    async with start() as run, run.client() as client:
        with pytest.raises(openai.NotFoundError) as retrieved:
            await client.models.retrieve("some/thing:else")
        with pytest.raises(openai.NotFoundError) as asked_for:
            await client.chat.completions.create(model="nobody", messages=HI)  # type: ignore[arg-type]
        with pytest.raises(openai.NotFoundError) as embedded:
            await client.embeddings.create(model="nobody", input="x")
    for caught in (retrieved, asked_for, embedded):
        assert caught.value.code == "model_not_found" and caught.value.param == "model"


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["demo", "demo-rendered"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_overlong_prompt_is_a_bad_request(start: Start, model: str, stream: bool) -> None:
    messages: Any = user("many words " * 3000)
    async with start() as run, run.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model=model, messages=messages, stream=stream)
    assert caught.value.code == "context_length_exceeded" and caught.value.type == "invalid_request_error"
    assert "exceeds the available context size" in caught.value.message


async def test_an_overlong_text_to_embed_is_a_bad_request(start: Start) -> None:
    async with start() as run, run.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="demo-embed", input="many words " * 3000)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "input"


async def test_a_wrong_key_is_an_authentication_error(start: Start) -> None:
    async with start(KEYED) as run:
        async with run.client(api_key="wrong-key") as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await client.chat.completions.create(**ASK)
        async with run.client(api_key="right-key") as client:
            assert (await client.chat.completions.create(**ASK)).choices
    assert caught.value.code == "invalid_api_key" and caught.value.status_code == 401


@pytest.mark.parametrize(
    ("kind", "raised", "code"),
    [
        ("too_many", openai.RateLimitError, "told_to"),
        ("denied", openai.PermissionDeniedError, "told_to"),
        ("busy", openai.InternalServerError, "told_to"),
        ("fault", openai.InternalServerError, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_plugins_refusal_raises_the_matching_exception(
    start: Start, kind: str, raised: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    yaml = f"plugins: {{refusing: {{use: 'tests.whole.rigged:Refusing', kind: {kind}}}}}\nchains: {{chat: [refusing]}}"
    async with start(yaml) as run, run.client() as client:
        with pytest.raises(raised) as caught:
            await client.chat.completions.create(**ASK, stream=stream)
    assert caught.value.code == code and "secret" not in caught.value.message
    assert caught.value.request_id and caught.value.request_id.startswith("req_")
    assert caught.value.response.headers.get("retry-after") == (None if code == "internal_error" else "7")


async def test_the_client_retries_when_the_server_lets_it(start: Start) -> None:
    ollama = Simulator(faults=[Fault("status", status=500)])
    async with start(ollama=ollama) as run, run.client(max_retries=1) as client:
        whole = await client.chat.completions.create(**ASK)
    assert whole.choices[0].finish_reason == "stop" and len(asked(ollama)) == 2


async def read_into(stream: AsyncStream[ChatCompletionChunk], pieces: list[str]) -> None:
    """Read the stream into a list, which keeps what came before an exception."""
    async for chunk in stream:
        pieces += [choice.delta.content or "" for choice in chunk.choices]


@pytest.mark.parametrize("kind", ["error_line", "eof", "garbage"])
async def test_a_failure_in_the_middle_of_a_stream_is_raised_there(start: Start, kind: Any) -> None:
    pieces: list[str] = []
    async with start(ollama=Simulator(faults=[Fault(kind, after=3)], delay=0.01)) as run, run.client() as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        with pytest.raises(openai.APIError) as caught:
            await read_into(stream, pieces)
    assert "".join(pieces).startswith("This is")
    assert not isinstance(caught.value, openai.APIStatusError) and caught.value.code in (
        "upstream_server",
        "upstream_cut",
    )


async def test_a_server_without_its_ollama_is_an_internal_server_error(start: Start) -> None:
    yaml = f"chains: {{chat: []}}\nupstreams: {{gone: {{ollama: '{dead_url()}'}}}}"
    async with start(yaml) as run, run.client() as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(**ASK)
    assert caught.value.status_code == 502 and caught.value.code == "upstream_connect"


# --- headers ---------------------------------------------------------------------------------------


async def test_raw_responses_carry_the_request_id_and_what_became_of_fields(start: Start) -> None:
    async with start() as run, run.client() as client:
        made = await client.chat.completions.with_raw_response.create(**ASK)
        kept = await client.chat.completions.with_raw_response.create(
            **ASK, n=2, verbosity="low", extra_headers={"X-Request-Id": "my-own:1"}, extra_body={"keep_alive": "1h"}
        )
    assert made.headers["x-request-id"].startswith("req_") and "x-gemmapy-params" not in made.headers
    assert made.headers["x-gemmapy-model"] == "demo:latest" and made.headers["x-gemmapy-upstream"] == "local"
    assert kept.headers["x-request-id"] == "my-own:1"
    assert set(kept.headers["x-gemmapy-params"].split(", ")) == {
        "n=emulated", "verbosity=ignored", "keep_alive=ignored",
    }  # fmt: skip
    assert len(kept.parse().choices) == 2


async def test_streamed_raw_responses_carry_the_same_headers(start: Start) -> None:
    async with start() as run, run.client() as client:
        raw = await client.chat.completions.with_raw_response.create(**ASK, verbosity="low", stream=True)
        assert raw.headers["x-gemmapy-params"] == "verbosity=ignored"
        chunks = [chunk async for chunk in raw.parse()]
    assert raw.headers["x-request-id"] and raw.request_id == raw.headers["x-request-id"] and chunks


async def test_many_clients_at_once_get_their_own_answers(start: Start) -> None:
    async def one(client: AsyncOpenAI, number: int) -> bool:
        messages: Any = user(f"number {number}.")
        whole = await client.chat.completions.create(model="demo", messages=messages)
        return f"number {number}." in (whole.choices[0].message.content or "")

    async with start() as run, run.client() as client:
        assert all(await asyncio.gather(*(one(client, number) for number in range(40))))
