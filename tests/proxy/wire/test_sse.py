"""Server-sent events."""

from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import UpstreamError
from proxy.wire import sse

CUTS = st.lists(st.integers(0, 60), max_size=6)
MARK = b"\xef\xbb\xbf"


def read(stream: bytes, cuts: list[int], most: int = 1000) -> list[bytes]:
    parser, found = sse.Parser(most), list[bytes]()
    for start, end in pairwise([0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]):
        found += parser.feed(stream[start:end])
    return found + parser.end()


@pytest.mark.parametrize("text", ["hi", "a\nb", "a\r\nb\u2028c\u0085", ""])
def test_json_is_an_event_of_one_line(text: str) -> None:
    frame = sse.data(orjson.dumps({"text": text}))
    assert frame.startswith(b"data: ") and frame.endswith(b"\n\n")
    assert frame.count(b"\n") == 2 and b"\r" not in frame
    assert orjson.loads(frame[6:]) == {"text": text}


@pytest.mark.parametrize("text", ["loading demo", "loading\n\ndata: forged", "a\rb", ""])
def test_a_comment_is_one_line_that_clients_skip(text: str) -> None:
    frame = sse.comment(text)
    assert frame.startswith(b": ") and frame.endswith(b"\n\n")
    assert frame.count(b"\n") == 2 and b"\r" not in frame


def test_the_end_is_openais() -> None:
    assert sse.DONE == b"data: [DONE]\n\n"


@given(cuts=CUTS, mark=st.sampled_from([b"", MARK]), blank=st.sampled_from([b"", b"\n", b"\r\n\r\n"]))
def test_a_byte_order_mark_loses_no_event_however_the_stream_is_split(
    cuts: list[int], mark: bytes, blank: bytes
) -> None:
    assert read(mark + blank + b'data: {"a":1}\r\n\r\n: hm\n\ndata: 2\n\ndata: 3', cuts) == [b'{"a":1}', b"2", b"3"]


@given(cuts=CUTS, before=st.sampled_from([b"", MARK, b"\r\n ", MARK + b"\n"]))
def test_a_document_is_one_event_however_it_is_split(cuts: list[int], before: bytes) -> None:
    document = b'{\n  "data": 1,\n\n  "data": "data: 2"\n}\n\n'
    assert read(before + document, cuts) == [document]


@pytest.mark.parametrize("cuts", [[], [3, 9, 20]])
@pytest.mark.parametrize("stream", [b'{"text":"' + b"a" * 50, b"data: " + b"a" * 50, MARK + b"data: " + b"a" * 50])
def test_events_and_documents_have_a_size_limit(stream: bytes, cuts: list[int]) -> None:
    with pytest.raises(UpstreamError, match="more than 40 bytes"):
        read(stream, cuts, most=40)


def test_empty_input_gives_no_event() -> None:
    assert read(b"", []) == read(MARK, [1]) == read(b"\n\n", [1]) == []
