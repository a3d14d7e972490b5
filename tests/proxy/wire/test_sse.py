"""Server-sent events."""

from __future__ import annotations

import orjson
import pytest

from proxy.wire import sse


@pytest.mark.parametrize("text", ["hi", "a\nb", "a\r\nb\u2028c\u0085", ""])
def test_json_is_one_event_of_one_line(text: str) -> None:
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
