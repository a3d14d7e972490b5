"""An answer's items as its client reads them, under the same ids, so that its conversation has the very same."""

from __future__ import annotations

from dataclasses import replace

import orjson

from plugins.conversations.messages import PREFIX, Said
from proxy.streams import Answer
from proxy.types import Call, Event, Finish
from proxy.wire.openai_items import RESPONSE
from proxy.wire.openai_responses_out import Response


class Output:
    """What one response has said so far."""

    def __init__(self, response: Response, streams: bool) -> None:
        """streams: whether its client reads the events as they come; else the whole of them."""
        self.response = response
        self.streams = streams

    @classmethod
    def of(cls, call: Call) -> Output | None:
        """None for what is no response."""
        receipt = call.receipt
        if receipt is None or receipt.head["object"] != "response":
            return None
        streams = call.stream or bool(receipt.head.get("background"))
        return cls(Response(receipt.head, receipt.complete), streams)

    def hear(self, event: Event) -> None:
        if self.streams:
            self.response.hear(event)

    def kept(self, said: Said, answer: Answer, whole: bool) -> Said:
        """The answer with its items.  Its own id is made of the response's, as theirs are, so that they tell it."""
        if not self.streams:
            self.response.gather(answer)
            if whole:
                self.response.write(Finish(answer.choice(0).finish))
        items = orjson.dumps(self.response.so_far()).decode()
        return replace(said, id=PREFIX + str(self.response.head["id"]).removeprefix(RESPONSE), items=items)
