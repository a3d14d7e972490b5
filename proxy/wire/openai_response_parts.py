"""Items of a response while they are generated, and their events in the stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import orjson

from proxy.types import JSON, Text, ToolCall, ToolCalled
from proxy.wire import openai_items
from proxy.wire.openai_items import Item

TOLD: Final = ("token", "logprob", "top_logprobs")
"""Fields of a token's logprob that events contain."""
Parted: TypeAlias = Mapping[str, tuple[str, str]]
"""Namespace and name of each function, by its name for the model."""


class Frames:
    """Writes the events of one stream, with their sequence numbers."""

    def __init__(self) -> None:
        self.count = 0
        """Number of events that were written."""

    def event(self, kind: str, **fields: JSON) -> bytes:
        told = orjson.dumps({"type": kind, **fields, "sequence_number": self.count})
        self.count += 1
        return b"event: " + kind.encode() + b"\ndata: " + told + b"\n\n"

    def added(self, index: int, item: Item) -> bytes:
        begun = {**item, "status": "in_progress"}
        return self.event("response.output_item.added", output_index=index, item=begun)

    def done(self, index: int, item: Item) -> bytes:
        return self.event("response.output_item.done", output_index=index, item=item)


class Speech:
    """A message that is being generated.  For speed, a delta is one `dumps` of its text between two prepared parts."""

    def __init__(self, frames: Frames, id: str, index: int) -> None:
        self.frames, self.id, self.index = frames, id, index
        self.texts: list[str] = []
        self.logprobs: list[JSON] = []
        self.annotations: list[JSON] = []
        self.place: dict[str, JSON] = {"item_id": id, "output_index": index, "content_index": 0}
        head = orjson.dumps({"type": "response.output_text.delta", **self.place})
        self.before = b"event: response.output_text.delta\ndata: " + head[:-1] + b',"delta":'
        self.after = b',"logprobs":[],"sequence_number":'

    def begin(self) -> bytes:
        added = self.frames.added(self.index, {**openai_items.spoken(self.id, ""), "content": []})
        part = openai_items.said("assistant", "")
        return added + self.frames.event("response.content_part.added", **self.place, part=part)

    def delta(self, text: str) -> bytes:
        if not text:
            return b""
        self.texts.append(text)
        self.frames.count += 1
        return self.before + orjson.dumps(text) + self.after + b"%d}\n\n" % (self.frames.count - 1)

    def say(self, event: Text) -> bytes:
        if not event.logprobs:
            return self.delta(event.text)
        self.texts.append(event.text)
        found = list(map(logprob_of, event.logprobs))
        self.logprobs += found
        return self.frames.event(
            "response.output_text.delta", **self.place, delta=event.text, logprobs=list(map(written_logprob, found))
        )

    def annotate(self, annotation: JSON) -> bytes:
        """The event that adds an annotation, which names a source of the text."""
        number = len(self.annotations)
        self.annotations.append(annotation)
        kind = "response.output_text.annotation.added"
        return self.frames.event(kind, **self.place, annotation_index=number, annotation=annotation)

    def item(self, status: str) -> Item:
        return openai_items.spoken(self.id, "".join(self.texts), status, self.logprobs, self.annotations)

    def end(self, status: str) -> bytes:
        item = self.item(status)
        (part,) = item["content"]
        logprobs = list(map(written_logprob, self.logprobs))
        said = self.frames.event("response.output_text.done", **self.place, text=part["text"], logprobs=logprobs)
        said += self.frames.event("response.content_part.done", **self.place, part=part)
        return said + self.frames.done(self.index, item)


class Thought:
    """Reasoning that is being generated.  summed: whether it is given as a summary."""

    def __init__(self, frames: Frames, id: str, index: int, summed: bool) -> None:
        self.frames, self.id, self.index, self.summed = frames, id, index, summed
        self.texts: list[str] = []
        self.place: dict[str, JSON] = {"item_id": id, "output_index": index}
        self.place["summary_index" if summed else "content_index"] = 0
        self.text = "response.reasoning_summary_text" if summed else "response.reasoning_text"
        self.part = "response.reasoning_summary_part" if summed else "response.content_part"

    def begin(self) -> bytes:
        item = {**openai_items.reasoning(self.id, ""), "content": []}
        added = self.frames.added(self.index, item)
        return added + self.frames.event(f"{self.part}.added", **self.place, part=self.as_part(""))

    def as_part(self, text: str) -> Item:
        return {"type": "summary_text" if self.summed else "reasoning_text", "text": text}

    def delta(self, text: str) -> bytes:
        self.texts.append(text)
        return self.frames.event(f"{self.text}.delta", **self.place, delta=text)

    def item(self, status: str) -> Item:
        return openai_items.reasoning(self.id, "".join(self.texts), self.summed, status)

    def end(self, status: str) -> bytes:
        text = "".join(self.texts)
        said = self.frames.event(f"{self.text}.done", **self.place, text=text)
        said += self.frames.event(f"{self.part}.done", **self.place, part=self.as_part(text))
        return said + self.frames.done(self.index, self.item(status))


def called(frames: Frames, id: str, index: int, event: ToolCalled, parted: Parted) -> tuple[Item, bytes]:
    """The item of a function call, which arrives complete, and all of its events."""
    namespace, name = parted.get(event.name, ("", event.name))
    item = openai_items.called(id, ToolCall(event.id, name, event.arguments), namespace=namespace)
    place, kind = {"item_id": id, "output_index": index}, "response.function_call_arguments"
    said = frames.added(index, {**item, "arguments": ""})
    said += frames.event(f"{kind}.delta", **place, delta=event.arguments)
    said += frames.event(f"{kind}.done", **place, name=name, arguments=event.arguments)
    return item, said + frames.done(index, item)


def written_logprob(logprob: Item) -> Item:
    return {name: logprob[name] for name in TOLD}


def logprob_of(given: Mapping[str, JSON]) -> Item:
    tops: Sequence[Mapping[str, JSON]] = given.get("top_logprobs") or ()
    return {**_token(given), "top_logprobs": list(map(_token, tops))}


def _token(given: Mapping[str, JSON]) -> Item:
    token, spelled = given["token"], given.get("bytes")
    letters = list(token.encode()) if spelled is None else list(spelled)
    return {"token": token, "logprob": given["logprob"], "bytes": letters}
