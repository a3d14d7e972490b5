"""The same conversation, asked in either dialect, is the same call."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.types import Chat, Complete, Embed
from proxy.wire import ollama_in, openai_chat, openai_completions, openai_embeddings
from proxy.wire.openai_messages import Limits
from tests.whole.asking import PNG, data_url

Json = dict[str, Any]
LIMITS = Limits()
PICTURE = data_url(PNG).partition(",")[2]

texts = st.text(max_size=20)
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)
arguments = st.dictionaries(words, st.one_of(st.integers(-(2**53), 2**53), texts, st.booleans(), st.none()), max_size=3)
calls = st.lists(st.tuples(words, words, arguments), max_size=2)
options = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "stop": st.lists(words, min_size=1, max_size=3),
        "max_tokens": st.integers(1, 1000),
    },
)
OLLAMA = {"max_tokens": "num_predict"}
turns = st.one_of(
    st.tuples(st.just("system"), texts),
    st.tuples(st.just("user"), texts, st.booleans()),
    st.tuples(st.just("assistant"), words, words, calls),
    st.tuples(st.just("tool"), texts, words),
)


def openai_turn(turn: Any) -> Json:
    match turn:
        case ("system", text):
            return {"role": "system", "content": text}
        case ("user", text, True):
            picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
            return {"role": "user", "content": [{"type": "text", "text": text}, picture]}
        case ("user", text, False):
            return {"role": "user", "content": text}
        case ("assistant", text, thought, called):
            made = [
                {"id": id, "type": "function", "function": {"name": name, "arguments": orjson.dumps(given).decode()}}
                for id, name, given in called
            ]
            return {"role": "assistant", "content": text, "reasoning_content": thought, "tool_calls": made}
        case ("tool", text, id):
            return {"role": "tool", "content": text, "tool_call_id": id}
    raise AssertionError(turn)


def ollama_turn(turn: Any) -> Json:
    match turn:
        case ("system", text):
            return {"role": "system", "content": text}
        case ("user", text, seen):
            return {"role": "user", "content": text, **({"images": [PICTURE]} if seen else {})}
        case ("assistant", text, thought, called):
            made = [{"id": id, "function": {"name": name, "arguments": given}} for id, name, given in called]
            return {"role": "assistant", "content": text, "thinking": thought, "tool_calls": made}
        case ("tool", text, id):
            return {"role": "tool", "content": text, "tool_call_id": id}
    raise AssertionError(turn)


def natively(given: Json) -> Json:
    return {OLLAMA.get(name, name): value for name, value in given.items()}


def tool(name: str) -> Json:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


@given(
    st.lists(turns, min_size=1, max_size=6),
    options,
    st.lists(words, max_size=2, unique=True),
    st.sampled_from([None, "json", {"type": "object", "properties": {"a": {"type": "integer"}}}]),
    st.sampled_from([None, (False, "none"), ("low", "low"), ("high", "high"), ("max", "max")]),
    st.one_of(st.none(), st.integers(0, 20)),
    st.booleans(),
)
def test_a_conversation_is_the_same_chat_in_both_dialects(
    said: list[Any], given: Json, tools: list[str], form: Any, think: Any, logprobs: int | None, stream: bool
) -> None:
    openai: Json = {"model": "m", "messages": [openai_turn(turn) for turn in said], "stream": stream, **given}
    ollama: Json = {"model": "m", "messages": [ollama_turn(turn) for turn in said], "stream": stream}
    ollama["options"] = natively(given)
    if tools:
        openai["tools"] = ollama["tools"] = [tool(name) for name in tools]
    if form == "json":
        openai["response_format"], ollama["format"] = {"type": "json_object"}, "json"
    elif form:
        shape = {"type": "json_schema", "json_schema": {"name": "s", "schema": form, "strict": False}}
        openai["response_format"], ollama["format"] = shape, form
    if think:
        ollama["think"], openai["reasoning_effort"] = think
    if logprobs is not None:
        for body in (openai, ollama):
            body["logprobs"], body["top_logprobs"] = True, logprobs
    one = openai_chat.read_chat(openai, LIMITS)
    other = ollama_in.read_native(ollama, ollama_in.CHAT, LIMITS)
    assert (one.model, one.stream, one.extra, one.about) == (other.model, other.stream, other.extra, other.about)
    assert unordered(one.chat()) == unordered(other.chat())


def unordered(chat: Chat) -> Chat:
    """The same chat with its tool arguments parsed, so that the formatting of their JSON does not matter."""
    spelled = tuple(
        replace(
            one,
            tool_calls=tuple(replace(call, arguments=repr(orjson.loads(call.arguments))) for call in one.tool_calls),
        )
        for one in chat.messages
    )
    # Ollama's `json` format is never checked, OpenAI's is; the model gets the same for both.
    form = chat.format and replace(chat.format, strict=False)
    return replace(chat, messages=spelled, format=form)


@given(words, options)
def test_a_raw_prompt_is_the_same_completion_in_both_dialects(prompt: str, given: Json) -> None:
    given = {"max_tokens": 5, **given}
    one = openai_completions.read_completion({"model": "m", "prompt": prompt, **given}, LIMITS)
    body = {"model": "m", "prompt": prompt, "raw": True, "options": natively(given)}
    other: Complete = ollama_in.read_native(body, ollama_in.GENERATE, LIMITS).complete()
    assert one.complete(one.prompts) == other


@given(st.lists(words, min_size=1, max_size=4), st.one_of(st.none(), st.integers(1, 512)))
def test_texts_want_the_same_vectors_in_both_dialects(inputs: list[str], dimensions: int | None) -> None:
    body: Json = {"model": "m", "input": inputs, **({"dimensions": dimensions} if dimensions else {})}
    one = openai_embeddings.read_embeddings(body, 10)
    other: Embed = ollama_in.read_native(body, ollama_in.EMBED, LIMITS).embed()
    assert one.embed(one.texts) == other
