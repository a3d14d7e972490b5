"""Builds the document of an answer, in its client's dialect, from the events that pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import orjson

from plugins.stored.answers import RESPONSE, Document
from proxy.errors import ProxyError
from proxy.streams import Answer
from proxy.types import Event, Receipt
from proxy.wire.openai_answer import ChatStyle, fingerprint
from proxy.wire.openai_responses_out import Response


class DocumentBuilder(Protocol):
    def hear(self, event: Event) -> None: ...

    def document(self) -> Document: ...

    def failure(self, error: ProxyError) -> Document | None:
        """The document of an answer that broke off; None if it is not stored."""


class CompletionBuilder:
    """A chat completion."""

    def __init__(self, receipt: Receipt, facts: Mapping[str, str]) -> None:
        self.head = receipt.head
        self.facts = facts
        self.answer = Answer()

    def hear(self, event: Event) -> None:
        self.answer.add(event)

    def document(self) -> Document:
        style = ChatStyle(self.head["model"], id=self.head["id"], created=self.head["created"])
        return {**self.head, **orjson.loads(style.whole(self.answer, fingerprint(self.facts)))}

    def failure(self, error: ProxyError) -> None:
        return None


class ResponseBuilder:
    """A response that is not streamed: the document as its client gets it, whatever the order of the events."""

    def __init__(self, receipt: Receipt) -> None:
        self.response = Response(receipt.head, receipt.complete)
        self.answer = Answer()

    def hear(self, event: Event) -> None:
        self.answer.add(event)

    def document(self) -> Document:
        self.response.take(self.answer)
        return self.response.document()

    def failure(self, error: ProxyError) -> Document:
        self.response.gather(self.answer)
        return self.response.failure(error)


def document_builder(receipt: Receipt, streams: bool, facts: Mapping[str, str]) -> DocumentBuilder:
    """facts: those of the reply."""
    if receipt.head["object"] != RESPONSE:
        return CompletionBuilder(receipt, facts)
    return Response(receipt.head, receipt.complete) if streams else ResponseBuilder(receipt)
