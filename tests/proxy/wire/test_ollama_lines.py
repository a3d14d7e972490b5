"""Ollama's answers become the same events, however their bytes are split."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.errors import BadCall, ProxyError, UpstreamError
from proxy.types import JSON, Event, Finish, Text, Thinking, ToolCalled, Usage
from proxy.wire.ollama_lines import ChatReader, Lines, vectors_of

END = {"done": True, "done_reason": "stop", "prompt_eval_count": 26, "eval_count": 14}
LOGPROB = {"token": "a", "logprob": -0.1, "bytes": [97]}


def line(content: str = "", done: JSON = None, logprobs: JSON = None, **message: JSON) -> bytes:
    said = {"role": "assistant", "content": content, **message}
    told = {"model": "m", "message": said, "done": False, **(done or {})}
    return orjson.dumps(told if logprobs is None else {**told, "logprobs": logprobs})


def call(name: str = "f", arguments: JSON = None, **more: JSON) -> JSON:
    return {"function": {"name": name, "index": 0, "arguments": arguments or {}}, **more}


def events(*lines: bytes) -> list[Event]:
    """The events of one answer, without the tool calls' IDs."""
    reader = ChatReader("m")
    return [bare(event) for one in lines for event in reader.read(one)]


def bare(event: Event) -> Event:
    return replace(event, id="") if isinstance(event, ToolCalled) else event


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (line("Hi"), [Text("Hi")]),
        (line(), []),
        (line(thinking="hm"), [Thinking("hm")]),
        (line("so", thinking="hm"), [Thinking("hm"), Text("so")]),
        (line("a", logprobs=[LOGPROB]), [Text("a", 0, (LOGPROB,))]),
        (line("", END, logprobs=[LOGPROB]), [Text("", 0, (LOGPROB,)), Usage(26, 14), Finish("stop")]),
        (line("", logprobs=[LOGPROB], thinking="a"), [Thinking("a")]),
        (line(tool_calls=[call("f", {"b": 1, "a": 2})]), [ToolCalled("", "f", '{"b":1,"a":2}')]),
        (line(tool_calls=[call("f"), call("g")]), [ToolCalled("", "f", "{}"), ToolCalled("", "g", "{}")]),
        (line("", END), [Usage(26, 14), Finish("stop")]),
        (line("x", END), [Text("x"), Usage(26, 14), Finish("stop")]),
        (line("", {**END, "done_reason": "length"}), [Usage(26, 14), Finish("length")]),
        (line("", {"done": True}), [Usage(None, None), Finish("stop")]),
        (line("", {"done": True, "prompt_eval_count": 5}), [Usage(5, None), Finish("stop")]),
        (line("", {**END, "prompt_eval_cached_count": 0}), [Usage(26, 14, 0), Finish("stop")]),
        (
            line("", {**END, "load_duration": 1, "prompt_eval_duration": 2, "eval_duration": 3}),
            [Usage(26, 14, None, 1, 2, 3), Finish("stop")],
        ),
        (
            line("", {**END, "prompt_eval_count": "26", "eval_count": -1, "eval_duration": 2**60, "load_duration": []}),
            [Usage(None, None), Finish("stop")],
        ),
        (line("", END, tool_calls=[call()]), [ToolCalled("", "f", "{}"), Usage(26, 14), Finish("tool_calls")]),
        (
            line("", {**END, "done_reason": "length"}, tool_calls=[call()]),
            [ToolCalled("", "f", "{}"), Usage(26, 14), Finish("length")],
        ),
    ],
)
def test_a_line_becomes_events(given: bytes, expected: list[Event]) -> None:
    assert events(given) == expected


def test_tool_calls_on_earlier_lines_decide_the_finish_reason() -> None:
    last = events(line("a"), line(tool_calls=[call()]), line(tool_calls=[call("g")]), line("", END))[-1]
    assert last == Finish("tool_calls")


def test_every_tool_call_gets_an_id_of_ours() -> None:
    reader = ChatReader("m")
    told = reader.read(line(tool_calls=[call(id="8f3k"), call(), call(id="8f3k")]))
    ids = [event.id for event in told if isinstance(event, ToolCalled)]
    assert len(set(ids)) == 3 and all(one.startswith("call_") and one.isascii() for one in ids)


def test_logprobs_are_delayed_until_the_text_of_their_tokens_comes() -> None:
    no, model = {"token": " no", "logprob": -0.1}, {"token": " model", "logprob": -0.2}
    told = events(line("", logprobs=[no]), line(" no model", logprobs=[model]), line("", END))
    assert told == [Text(" no model", 0, (no, model)), Usage(26, 14), Finish("stop")]


def test_delayed_logprobs_come_with_text_that_has_none() -> None:
    assert events(line("", logprobs=[LOGPROB]), line("a"), line("b")) == [Text("a", 0, (LOGPROB,)), Text("b")]


def test_logprobs_of_reasoning_are_dropped() -> None:
    told = events(line("", logprobs=[LOGPROB]), line(thinking="hm", logprobs=[LOGPROB]), line("a"))
    assert told == [Thinking("hm"), Text("a")]


def test_an_answer_is_done_only_after_its_last_line() -> None:
    reader = ChatReader("m")
    reader.read(line("a"))
    assert not reader.done
    reader.read(line("", END))
    assert reader.done


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"5",
        b'"text"',
        b"{}",
        b'{"message":{}}',
        b'{"message":null,"done":false}',
        b'{"message":{"tool_calls":[{}]},"done":false}',
        b'{"message":{"tool_calls":[5]},"done":false}',
        b'{"message":{"tool_calls":[{"function":{}}]},"done":false}',
        b'{"message":{"content":"\xff"},"done":false}',
        b'{"message":{"content":"a"},"done":false,"logprobs":[{"token":"a"}]}',
        b'{"message":{"content":"a"},"done":false,"logprobs":[{"token":"a","logprob":"x"}]}',
        b"<html>",
    ],
)
def test_an_invalid_line_is_an_upstream_error(given: bytes) -> None:
    with pytest.raises(UpstreamError, match="not a valid answer") as caught:
        ChatReader("m").read(given)
    assert caught.value.cause == "server"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("model runner has unexpectedly stopped", UpstreamError),
        ("llama-server chat error: map[code:500 message:no]", UpstreamError),
        ('{"error":{"code":400,"message":"exceeds the available context size"}}', BadCall),
    ],
)
def test_an_error_line_is_raised_as_its_kind_of_error(text: str, kind: type[ProxyError]) -> None:
    with pytest.raises(kind, match=r"stopped|chat error|^exceeds"):
        ChatReader("m").read(orjson.dumps({"error": text}))


# --- however it was split ----------------------------------------------------------------------------

WORDS = st.text(max_size=8) | st.sampled_from(["ä\n", "漢字", "🙂", "\u2028", '"\\'])
STREAMS = st.lists(
    st.builds(line, WORDS)
    | st.builds(line, WORDS, thinking=WORDS)
    | st.builds(line, st.just(""), tool_calls=st.lists(st.builds(call, st.just("f"), st.just({"ä": "🙂"})), max_size=2))
    # Ollama writes non-ASCII characters unescaped; other servers might escape them.
    | WORDS.map(lambda words: json.dumps({"message": {"content": words}, "done": False}).encode()),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(stream=STREAMS, cuts=st.lists(st.integers(0, 400), max_size=8), ended=st.booleans())
def test_any_split_of_the_bytes_gives_the_same_events(stream: list[bytes], cuts: list[int], ended: bool) -> None:
    whole = b"".join(one + b"\n" for one in (*stream, line("", END)))
    whole = whole if ended else whole[:-1]
    places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    lines, found = Lines(10_000), []
    for start, end in pairwise(places):
        found += lines.feed(whole[start:end])
    if not ended:
        found.append(lines.rest)
    assert found == [*stream, line("", END)]
    assert events(*found) == events(*stream, line("", END))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_character_can_arrive_byte_by_byte(size: int) -> None:
    whole = line("ä漢🙂") + b"\n"
    lines = Lines(10_000)
    found = [one for at in range(0, len(whole), size) for one in lines.feed(whole[at : at + size])]
    assert events(*found) == [Text("ä漢🙂")] and lines.rest == b""


@pytest.mark.parametrize("parts", [[b"123456"], [b"123", b"456"], [b"12345", b"6\n"], [b"1\n123456\n"], [b"123456\n1"]])
def test_a_line_that_is_too_long_is_an_error_wherever_it_was_split(parts: list[bytes]) -> None:
    lines = Lines(5)
    with pytest.raises(UpstreamError, match="more than 5 bytes"):
        [lines.feed(part) for part in parts]


def test_the_limit_applies_to_single_lines() -> None:
    assert Lines(5).feed(b"12345\n12345\n12345") == [b"12345", b"12345"]


# --- embeddings --------------------------------------------------------------------------------------


def test_embeddings_are_rows_of_float32_with_their_usage() -> None:
    document = {"embeddings": [[0.6, 0.8], [1, 0]], "prompt_eval_count": 4, "load_duration": 9}
    vectors, usage = vectors_of(orjson.dumps(document), 2)
    assert vectors.values.dtype == np.float32
    assert vectors.values.tolist() == [[np.float32(0.6), np.float32(0.8)], [1, 0]]
    assert usage == Usage(4, 0, load_ns=9)
    assert vectors_of(b'{"embeddings":[[1]]}', 1)[1] == Usage(None, 0)


@pytest.mark.parametrize(
    "document",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"embeddings":null}',
        b'{"embeddings":5}',
        b'{"embeddings":[]}',
        b'{"embeddings":[1,2]}',
        b'{"embeddings":[[1],[2]]}',
        b'{"embeddings":[[1,2],[3]]}',
        b'{"embeddings":[["a"]]}',
        b'{"embeddings":[[[1]]]}',
        b'{"embeddings":[[1e300]]}',
    ],
)
def test_embeddings_other_than_requested_are_an_upstream_error(document: bytes) -> None:
    with pytest.raises(UpstreamError, match="Ollama sent"):
        vectors_of(document, 1)
