"""The items of a response with the ids that the client gets, so that the conversation stores the same ones."""

from __future__ import annotations

from dataclasses import replace

import orjson

from plugins.conversations.messages import PREFIX, StoredMessage
from proxy.streams import Answer
from proxy.types import Call, Event, Finish
from proxy.wire.openai_items import RESPONSE
from proxy.wire.openai_responses_out import Response


class Output:
    """Builds the items of one response while it is generated."""

    def __init__(self, response: Response, streams: bool) -> None:
        """streams: whether the client gets events as they arrive; otherwise the answer as a whole."""
        self.response = response
        self.streams = streams

    @classmethod
    def of(cls, call: Call) -> Output | None:
        """None if the call is not to the Responses API."""
        receipt = call.receipt
        if receipt is None or receipt.head["object"] != "response":
            return None
        streams = call.stream or bool(receipt.head.get("background"))
        return cls(Response(receipt.head, receipt.complete), streams)

    def hear(self, event: Event) -> None:
        if self.streams:
            self.response.hear(event)

    def kept(self, said: StoredMessage, answer: Answer, whole: bool) -> StoredMessage:
        """The message with its items.  Like their ids, the message's is made of the response's."""
        if not self.streams:
            self.response.gather(answer)
            if whole:
                self.response.write(Finish(answer.choice(0).finish))
        items = orjson.dumps(self.response.so_far()).decode()
        return replace(said, id=PREFIX + str(self.response.head["id"]).removeprefix(RESPONSE), items=items)
