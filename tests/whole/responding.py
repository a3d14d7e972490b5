"""Reads event streams of the Responses API, and checks them against the types of OpenAI's SDK."""

from __future__ import annotations

import json
from typing import Any, get_args

import aiohttp
from openai.types import responses as types
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

Json = dict[str, Any]
KINDS: dict[str, type[BaseModel]] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(ResponseStreamEvent)[0])
}
"""The SDK's class for each event type."""
ITEMS: dict[str, type[BaseModel]] = {
    "message": types.ResponseOutputMessage,
    "function_call": types.ResponseFunctionToolCallItem,
    "reasoning": types.ResponseReasoningItem,
    "file_search_call": types.ResponseFileSearchToolCall,
}
SEARCHING = [f"response.file_search_call.{stage}" for stage in ("in_progress", "searching", "completed")]
DELTAS = {
    "response.output_text.delta": "text",
    "response.reasoning_text.delta": "text",
    "response.reasoning_summary_text.delta": "text",
    "response.function_call_arguments.delta": "arguments",
}
ENDS = ("response.completed", "response.incomplete", "response.failed")


def checked(document: Json) -> Json:
    """The response, with each of its items validated by the SDK's types."""
    Response.model_validate(document)
    for item in document["output"]:
        ITEMS[item["type"]].model_validate(item)
    return document


async def events_of(response: aiohttp.ClientResponse) -> list[Json]:
    """The events of a stream, each validated by the SDK's class for its type."""
    text = (await response.read()).decode()
    assert response.status == 200 and response.content_type == "text/event-stream", text
    return parsed(text)


def parsed(text: str) -> list[Json]:
    found = []
    for block in text.split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        KINDS[event["type"]].model_validate(event)
        found.append(event)
    return found


def final_response(events: list[Json], first: int = 0) -> Json:
    """The response in the last event, after checking the events' order, sequence numbers and indices.

    first: the sequence number of the first event, if the stream does not start at the beginning.
    """
    assert [one["sequence_number"] for one in events] == list(range(first, first + len(events)))
    kinds = [one["type"] for one in events]
    if not first:
        begun = ["response.created", "response.queued", "response.in_progress"]
        assert [kind for kind in kinds if kind in begun] == [one for one in begun if one in kinds]
        assert kinds[0] == "response.created" and not events[0]["response"]["output"]
    assert kinds[-1] in ENDS and sum(kind in ENDS for kind in kinds) == 1
    end: Json = checked(events[-1]["response"])
    assert end["status"] == kinds[-1].removeprefix("response.")
    if not first:
        for index, item in enumerate(end["output"]):
            check_item([one for one in events if one.get("output_index") == index], item, kinds[-1] == ENDS[2])
    return end


def check_item(events: list[Json], item: Json, broken: bool) -> None:
    """Check that an item's events add up to the item in the response.

    broken: whether the stream broke off, so that the item may have no end.
    """
    assert {one["item_id"] for one in events if "item_id" in one} == {item["id"]}
    kinds = [one["type"] for one in events]
    assert kinds[0] == "response.output_item.added" and events[0]["item"]["id"] == item["id"]
    if item["type"] == "file_search_call":
        assert kinds[1:] == [*SEARCHING, "response.output_item.done"] and events[-1]["item"] == item
        return
    added = [one["annotation"] for one in events if one["type"] == "response.output_text.annotation.added"]
    assert added == [one for part in item.get("content") or () for one in part.get("annotations") or ()]
    said = "".join(one["delta"] for one in events if one["type"] in DELTAS)
    parts = item.get("content") or item.get("summary") or [{"text": item.get("arguments", "")}]
    assert said == parts[0]["text"]
    if broken:
        return
    assert kinds[-1] == "response.output_item.done" and events[-1]["item"] == item
    for delta, name in DELTAS.items():
        if delta in kinds:
            (done,) = [one for one in events if one["type"] == delta.removesuffix("delta") + "done"]
            assert done[name] == said and kinds.index(done["type"]) > kinds.index(delta)
