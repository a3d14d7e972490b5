"""Answers of OpenAI-compatible servers become the same events, whole or in chunks, in all their variants."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.errors import BadCall, UpstreamError
from proxy.streams import Answer
from proxy.types import JSON, Event, Finish, Text, Thinking, ToolCalled, Usage
from proxy.wire import sse
from proxy.wire.openai_answer import ChatStyle
from proxy.wire.openai_chunks import AnswerReader, vectors_of
from proxy.wire.openai_completions import CompletionStyle

PROB = {"token": "a", "logprob": -0.5, "bytes": [97]}
SAID = {**PROB, "top_logprobs": []}


def choice(finish: str | None = None, logprobs: JSON = None, **delta: JSON) -> bytes:
    return orjson.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}]})


def message(finish: str | None = "stop", **said: JSON) -> bytes:
    return orjson.dumps({"choices": [{"index": 0, "message": said, "finish_reason": finish}]})


def completed(text: str, finish: str | None = None, logprobs: JSON = None) -> bytes:
    return orjson.dumps({"choices": [{"index": 0, "text": text, "finish_reason": finish, "logprobs": logprobs}]})


def used(**more: JSON) -> bytes:
    return orjson.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, **more}})


def piece(index: int | None = 0, id: str | None = None, name: str | None = None, arguments: JSON = None) -> JSON:
    told = {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}
    return {key: value for key, value in told.items() if value is not None}


def calling(*pieces: JSON) -> bytes:
    return choice(tool_calls=list(pieces))


def events(*payloads: bytes, top: int = 0) -> list[Event]:
    reader = AnswerReader("m", top)
    return [event for payload in payloads for event in reader.read(payload)] + reader.end()


def bare(event: Event) -> Event:
    return replace(event, id="") if isinstance(event, ToolCalled) else event


STOP = choice("stop")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([choice(role="assistant", content=""), choice(content="Hi"), STOP], [Text("Hi")]),
        ([choice(role="assistant", content=None), choice(content="Hi"), STOP], [Text("Hi")]),
        ([choice("stop", content="Hi")], [Text("Hi")]),
        ([choice(reasoning_content="hm"), choice(content="so"), STOP], [Thinking("hm"), Text("so")]),
        ([choice(reasoning="hm"), STOP], [Thinking("hm")]),
        ([choice(reasoning="hm", reasoning_content="hm"), STOP], [Thinking("hm")]),
        ([b'{"choices":[],"prompt_filter_results":[]}', choice(content="a"), STOP], [Text("a")]),
        ([completed("Hi"), completed("", "stop")], [Text("Hi")]),
        ([message(content="Hi", reasoning="hm")], [Thinking("hm"), Text("Hi")]),
        ([choice(content="a", logprobs={"content": [PROB]}), STOP], [Text("a", 0, (SAID,))]),
        ([choice(content="", logprobs={"content": [PROB]}), STOP], [Text("", 0, (SAID,))]),
        ([choice(reasoning="a", logprobs={"content": [PROB]}), STOP], [Thinking("a")]),
        ([choice(content="a", logprobs={"content": None}), STOP], [Text("a")]),
    ],
)
def test_text_and_reasoning(given: list[bytes], expected: list[Event]) -> None:
    assert events(*given) == [*expected, Finish("stop")]


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
def test_a_finish_reason_is_passed_on(reason: str) -> None:
    assert events(choice(reason)) == [Finish(reason)]


def test_a_refusal_becomes_text_with_the_finish_reason_content_filter() -> None:
    assert events(choice(refusal="No."), choice("content_filter")) == [Text("No."), Finish("content_filter")]
    assert events(message(refusal="No.", content=None)) == [Text("No."), Finish("content_filter")]


def test_usage_comes_once_after_the_finish() -> None:
    given = (STOP, used(prompt_tokens_details={"cached_tokens": 3}), b"[DONE]", choice(content="late"))
    assert events(*given) == [Finish("stop"), Usage(5, 2, 3)]
    thought = used(completion_tokens_details={"reasoning_tokens": 1})
    assert events(STOP, thought) == [Finish("stop"), Usage(5, 2, thinking_tokens=1)]
    assert events(choice(content="a"), used(), choice("stop"), used(prompt_tokens_details=None))[-1] == Usage(5, 2)


@pytest.mark.parametrize("nonsense", ["5", -1, 2**60, 1.5, [], True])
def test_invalid_counts_are_dropped_without_failing_the_answer(nonsense: JSON) -> None:
    told = used(prompt_tokens=nonsense, completion_tokens_details={"reasoning_tokens": nonsense})
    assert events(STOP, told) == [Finish("stop"), Usage(None, 2)]
    assert vectors_of(rows([1.0], usage={"prompt_tokens": nonsense}), 1)[1] == Usage(None, 0)


@pytest.mark.parametrize("beside", [{}, {"choices": None}, {"choices": []}])
def test_usage_can_come_without_a_choice(beside: dict[str, JSON]) -> None:
    alone = orjson.dumps({**beside, "usage": {"prompt_tokens": 5, "completion_tokens": 2}})
    assert events(choice(content="a"), STOP, alone, b"[DONE]") == [Text("a"), Finish("stop"), Usage(5, 2)]
    with pytest.raises(UpstreamError, match="before it was complete"):
        events(alone)


def test_more_alternatives_than_requested_are_dropped() -> None:
    others = [{"token": one, "logprob": -1.0, "bytes": None, "id": 7} for one in "abc"]
    told = events(choice("stop", content="a", logprobs={"content": [{**PROB, "id": 1, "top_logprobs": others}]}), top=2)
    [text, _] = told
    assert isinstance(text, Text)
    assert text.logprobs[0] == {
        **PROB,
        "top_logprobs": [{"token": one, "logprob": -1.0, "bytes": None} for one in "ab"],
    }


def test_a_token_with_zero_probability_has_a_finite_logprob() -> None:
    [text, _] = events(choice("stop", content="a", logprobs={"content": [{**PROB, "logprob": None}]}))
    assert isinstance(text, Text) and text.logprobs[0]["logprob"] == -9999.0


@pytest.mark.parametrize("wrong", [{"logprob": "x"}, {"token": 1}, {"top_logprobs": [{"token": "a"}]}])
def test_invalid_logprobs_are_an_upstream_error(wrong: dict[str, JSON]) -> None:
    with pytest.raises(UpstreamError, match="not a valid answer"):
        events(choice("stop", content="a", logprobs={"content": [{**PROB, **wrong}]}), top=1)


def test_the_four_lists_of_completions_become_logprobs() -> None:
    lists = {"tokens": ["ä", "b"], "token_logprobs": [-0.5, None], "top_logprobs": [{"b": -2.0, "ä": -0.5}, None]}
    [text, _] = events(completed("äb", "stop", {**lists, "text_offset": [0, 1]}), top=1)
    assert isinstance(text, Text)
    best = {"token": "ä", "logprob": -0.5, "bytes": [195, 164]}
    assert text.logprobs == (
        {**best, "top_logprobs": [best]},
        {"token": "b", "logprob": -9999.0, "bytes": [98], "top_logprobs": []},
    )
    assert events(completed("a", "stop", {"content": [PROB]}))[0] == Text("a", 0, (SAID,))


# --- calls --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([calling(piece(0, "x", "f", "")), calling(piece(0, arguments='{"a"')), calling(piece(0, arguments=":1}"))],
         [ToolCalled("x", "f", '{"a":1}')]),
        ([calling(piece(0, "x", "f", "{}")), calling(piece(1, "y", "g", "{}"))],
         [ToolCalled("x", "f", "{}"), ToolCalled("y", "g", "{}")]),
        ([calling(piece(0, "x", "f", "{}"), piece(1, "y", "g", "{}"))],
         [ToolCalled("x", "f", "{}"), ToolCalled("y", "g", "{}")]),
        ([calling(piece(0, "x", "f", "{}")), calling(piece(0, "y", "g", "{}"))],  # every one has index 0
         [ToolCalled("x", "f", "{}"), ToolCalled("y", "g", "{}")]),
        ([calling(piece(None, "x", "f", '{"a"')), calling(piece(None, arguments=":1}"))],  # none has an index
         [ToolCalled("x", "f", '{"a":1}')]),
        ([calling(piece(0, "x", "f", '{"a"')), calling(piece(0, "x", "f", ":1}"))],  # names and ids repeated
         [ToolCalled("x", "f", '{"a":1}')]),
        ([calling(piece(0, "x", "f")), calling(piece(0, "", "", ""))], [ToolCalled("x", "f", "{}")]),
        ([calling(piece(0, "x", "f", {"a": 1}))], [ToolCalled("x", "f", '{"a":1}')]),
        ([calling(piece(0, "x", "f", '{"a"'), piece(1, "y", "g", "{}")), calling(piece(0, arguments=":1}"))],  # in turn
         [ToolCalled("x", "f", '{"a":1}'), ToolCalled("y", "g", "{}")]),
        ([calling(piece(0, "x", "f", "{}"), piece(1, "y", "g", '{"a"')),
          calling(piece(0, arguments=" "), piece(1, arguments=":1}"))],
         [ToolCalled("x", "f", "{}"), ToolCalled("y", "g", '{"a":1}')]),
        ([calling(piece(0, "x", "f")), calling(piece(1, "y", "g"))],
         [ToolCalled("x", "f", "{}"), ToolCalled("y", "g", "{}")]),
    ],
)  # fmt: skip
def test_a_tool_call_in_pieces_is_one_event(given: list[bytes], expected: list[Event]) -> None:
    for finish in ("tool_calls", "stop", "function_call"):
        assert events(*given, choice(finish)) == [*expected, Finish("tool_calls")]


def test_a_tool_call_is_complete_when_the_next_one_begins() -> None:
    reader = AnswerReader("m")
    assert reader.read(calling(piece(0, "x", "f", "{}"))) == []
    assert reader.read(calling(piece(1, "y", "g"))) == [ToolCalled("x", "f", "{}")]


def test_tool_calls_without_ids_get_some() -> None:
    document = message("tool_calls", content=None, tool_calls=[piece(None, None, "f", "{}")] * 2)
    ids = [event.id for event in events(document) if isinstance(event, ToolCalled)]
    assert len(set(ids)) == 2 and all(one.startswith("call_") for one in ids)


@pytest.mark.parametrize("arguments", ["[]", '{"a"', "x", "null"])
def test_arguments_other_than_an_object_are_an_invalid_answer(arguments: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        events(calling(piece(0, "x", "f", arguments)), choice("tool_calls"))
    assert caught.value.cause == "invalid_answer"


def test_an_incomplete_tool_call_is_dropped() -> None:
    assert events(calling(piece(0, "x", "f", '{"a"')), choice("length")) == [Finish("length")]
    assert events(calling(piece(0, "x", "f", "{}")), choice("length"))[0] == ToolCalled("x", "f", "{}")


# --- what fails ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [[], [choice(content="a")], [choice(content="a"), b"[DONE]"], [message(None)]])
def test_an_answer_without_a_finish_reason_was_cut_off(given: list[bytes]) -> None:
    with pytest.raises(UpstreamError) as caught:
        events(*given)
    assert caught.value.cause == "cut"


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_aborted_answer_is_an_upstream_error(reason: str) -> None:
    with pytest.raises(UpstreamError):
        events(choice(reason))


@pytest.mark.parametrize(
    "given",
    [b"", b"{", b"null", b"[]", b"5", b"{}", b'{"choices":[5]}', b'{"choices":null}', b"<html>",
     choice(content=5), choice(tool_calls=[5]), choice(tool_calls=5), choice(logprobs=5),
     choice(logprobs={"content": [{}]}),
     b'{"choices":[{"delta":{"content":"\xff"}}]}', b'{"choices":[],"usage":5}'],
)  # fmt: skip
def test_an_invalid_answer_is_an_upstream_error(given: bytes) -> None:
    with pytest.raises(UpstreamError, match="not a valid answer") as caught:
        AnswerReader("m").read(given)
    assert caught.value.cause == "server"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "engine died", "type": "InternalServerError", "code": 500}, UpstreamError),
        ({"message": "no", "code": 400}, BadCall),
        ({"message": "x", "code": "context_length_exceeded"}, BadCall),
        ("words", UpstreamError),
    ],
)
def test_an_error_in_a_stream_is_raised_as_its_kind(error: JSON, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        AnswerReader("m").read(orjson.dumps({"error": error}))


def test_an_error_marked_by_its_object_field_keeps_its_message() -> None:
    with pytest.raises(BadCall, match="no such thing"):
        AnswerReader("m").read(b'{"object":"error","message":"no such thing","type":"BadRequestError","code":400}')


# --- the bytes of a stream ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "found"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b": a comment\n\ndata: a\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"event: x\nid: 1\nretry: 5\ndata: a\n\n\n\n", [b"a"]),
        (b"data\n\n", [b""]),
        (b"data: a", [b"a"]),
        (b"data: a\n", [b"a"]),
        (b"", []),
        (b"\n\n", []),
        (b"data:  a\n\n", [b" a"]),
    ],
)
def test_the_data_of_events(stream: bytes, found: list[bytes]) -> None:
    parser = sse.Parser(100)
    assert parser.feed(stream) + parser.end() == found


@pytest.mark.parametrize("stream", [b"data: 123456\n\n", b"data: 1234567", b"data: 123\ndata: 456\n", b": 12345678"])
def test_an_event_beyond_the_size_limit_is_refused(stream: bytes) -> None:
    with pytest.raises(UpstreamError, match="more than 5 bytes"):
        sse.Parser(5).feed(stream)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8) | st.sampled_from(
    ["ä\n", "🙂", "\u2028", "\r\n", '"\\']
)
PROBS = st.lists(
    WORDS.map(lambda token: {"token": token, "logprob": -1.0, "bytes": [1], "top_logprobs": []}), max_size=2
).map(tuple)
CALLS = st.builds(
    ToolCalled,
    st.uuids().map(str),
    WORDS,
    st.dictionaries(WORDS, WORDS, max_size=2).map(lambda one: orjson.dumps(one).decode()),
)
ANSWERS = st.tuples(
    st.lists(st.builds(Thinking, WORDS), max_size=2),
    st.lists(st.builds(Text, WORDS, st.just(0), PROBS), max_size=3),
    st.lists(CALLS, max_size=3, unique_by=lambda call: call.id),
    st.sampled_from(["stop", "length"]),
    st.none() | st.builds(Usage, st.integers(0, 9), st.integers(0, 9), st.none() | st.integers(0, 9)),
)  # fmt: skip


def events_of_answer(answer: JSON, usage: Usage | None) -> list[Event]:
    thoughts, texts, calls, reason, _ = answer
    reason = "tool_calls" if calls and reason == "stop" else reason
    return [*thoughts, *texts, *calls, Finish(reason), *([usage] if usage else [])]


def events_of_stream(stream: bytes, places: list[int]) -> list[Event]:
    parser, reader, found = sse.Parser(100_000), AnswerReader("m"), list[Event]()
    for start, end in pairwise(sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})):
        for payload in parser.feed(stream[start:end]):
            found += reader.read(payload)
    assert reader.done
    return found + reader.end()


@settings(max_examples=100, deadline=None)
@given(answer=ANSWERS, cuts=st.lists(st.integers(0, 5000), max_size=8), crlf=st.booleans())
def test_our_own_streams_are_read_as_the_same_events(answer: JSON, cuts: list[int], crlf: bool) -> None:
    given = events_of_answer(answer, answer[4])
    chunks = ChatStyle("m", include_usage=True).chunks("fp")
    stream = b"".join(chunks.write(event) for event in given) + chunks.end()
    stream = stream.replace(b"\n", b"\r\n") if crlf else stream
    expected = given if answer[-1] else [*given, Usage(0, 0)]
    assert events_of_stream(stream, cuts) == expected


@settings(max_examples=60, deadline=None)
@given(answer=ANSWERS)
def test_our_own_whole_answers_are_read_as_the_same_answer(answer: JSON) -> None:
    wrote, read = Answer(), Answer()
    for event in events_of_answer(answer, answer[4] or Usage(0, 0)):
        wrote.add(event)
    for event in events(ChatStyle("m").whole(wrote, "fp")):
        read.add(event)
    [one], [other] = wrote.choices.values(), read.choices.values()
    assert (one.text, one.thinking, one.tool_calls, one.finish) == (
        other.text,
        other.thinking,
        other.tool_calls,
        other.finish,
    )
    assert one.logprobs == other.logprobs and wrote.usage == read.usage


@settings(max_examples=40, deadline=None)
@given(words=st.lists(WORDS, max_size=4), cuts=st.lists(st.integers(0, 2000), max_size=6))
def test_completions_are_read_as_they_were_written(words: list[str], cuts: list[int]) -> None:
    given: list[Event] = [*map(Text, words), Finish("length"), Usage(3, 4)]
    chunks = CompletionStyle("m", include_usage=True).chunks("fp")
    stream = b"".join(chunks.write(event) for event in given) + chunks.end()
    assert events_of_stream(stream, cuts) == given


# --- embeddings ---------------------------------------------------------------------------------------


def rows(*values: JSON, usage: JSON = None) -> bytes:
    data = [{"index": index, "embedding": value} for index, value in enumerate(values)]
    return orjson.dumps({"data": data[::-1], "usage": usage})


def test_embeddings_are_in_order_and_of_unit_length() -> None:
    vectors, usage = vectors_of(rows([3.0, 4.0], [0.0, 0.0], [0.0, -2.0], usage={"prompt_tokens": 7}), 3)
    assert vectors.values.dtype == np.float32 and usage == Usage(7, 0)
    assert vectors.values.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0], [0.0, -1.0]]


def test_more_dimensions_than_requested_are_cut() -> None:
    vectors, usage = vectors_of(rows([3.0, 4.0, 12.0]), 1, 2)
    assert vectors.values.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]] and usage == Usage(None, 0)


@pytest.mark.parametrize(
    "document",
    [b"{", b"[]", b"{}", rows([1.0]), rows([1.0], [1.0, 2.0]), rows([1.0], [None]), rows([1.0], ["a"]), rows(1.0, 2.0),
     b'{"data":[{"embedding":[1]},{"embedding":[1]}]}'],
)  # fmt: skip
def test_invalid_embeddings_are_an_upstream_error(document: bytes) -> None:
    with pytest.raises(UpstreamError):
        vectors_of(document, 2)
