"""What is stored of an answer, which is what its client got."""

from __future__ import annotations

import orjson
import pytest

from plugins.stored.documents import document_builder
from proxy.errors import UpstreamError
from proxy.streams import Answer
from proxy.types import JSON, Event, Finish, Receipt, Text, Thinking, ToolCalled, Usage
from proxy.wire.openai_messages import Limits
from proxy.wire.openai_responses import read_response
from proxy.wire.openai_responses_out import ResponseStyle

MIXED: list[Event] = [
    ToolCalled("c1", "f", "{}"), Text("a"), Thinking("hm"), Text("b"), ToolCalled("c2", "f", "{}"), Thinking("so"),
]  # fmt: skip


def receipt() -> Receipt:
    asked = read_response({"model": "m", "input": "hi"}, Limits(), {"previous_response_id"})
    return Receipt(asked.head(1), asked.items)


@pytest.mark.parametrize("streams", [True, False])
def test_the_stored_answer_equals_the_clients_for_any_order_of_events(streams: bool) -> None:
    kept, events = receipt(), [*MIXED, Usage(1, 2), Finish("tool_calls")]
    answer, one = Answer(), document_builder(kept, streams, {})
    style = ResponseStyle(kept.head, kept.complete)
    chunks, said = style.chunks(""), b""
    for event in events:
        one.hear(event)
        answer.add(event)
        said += chunks.write(event)
    kept.complete.seconds = 7  # as if the announcement were late
    told: JSON = orjson.loads(style.whole(answer, ""))
    if streams:
        told = orjson.loads((said + chunks.end()).decode().split("data: ")[-1])["response"]
    assert one.document() == told and told["completed_at"] == 7


@pytest.mark.parametrize("streams", [True, False])
def test_a_cut_off_answer_is_stored_as_far_as_it_came(streams: bool) -> None:
    one = document_builder(receipt(), streams, {})
    for event in (Thinking("hm"), Text("a")):
        one.hear(event)
    failed = one.failure(UpstreamError("gone", "cut"))
    assert failed is not None and (failed["status"], failed["completed_at"]) == ("failed", None)
    assert [(item["type"], item["status"]) for item in failed["output"]] == [
        ("reasoning", "completed"), ("message", "incomplete"),
    ]  # fmt: skip
