"""Stores requests and their answers, so that callers can read them again and continue them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Self

import orjson
from msgspec.structs import replace
from pydantic import PositiveInt

from plugins.stored.answers import RESPONSE
from plugins.stored.caller_data import CallerAnswers
from plugins.stored.documents import document_builder
from plugins.stored.fitting import fitted
from plugins.stored.references import resolved
from plugins.stored.retention import EVERY, Retention
from plugins.stored.runs import Runs
from plugins.stored.store import CONTINUED, Store
from plugins.stored.tables import FEATURE
from proxy.asks import last_words
from proxy.config import Strict
from proxy.errors import BadCall, Busy, ProxyError, TooLarge
from proxy.host import Host, PeriodicTasks
from proxy.types import Call, Chat, Events, Handler, Receipt, Reply, Route
from proxy.wire.openai_items import messages

log = logging.getLogger(__name__)


class Stored:
    """Keeps responses and, if they have `store: true`, chat completions, and serves OpenAI's endpoints for them.

    Goes first in its chain: what it generates in the background goes through the rest of the chain like any call.
    """

    place = "defers"
    fields = frozenset({CONTINUED, "background"})
    tables = FEATURE

    class Settings(Strict):
        keep_days: PositiveInt | None = 30
        """Days for which an answer is kept after the last response that continues it.  If unset, forever."""
        entries: PositiveInt = 10_000
        """Answers kept per caller; the oldest are deleted first."""
        caller_bytes: PositiveInt = 1024 * 1024 * 1024
        """Bytes kept per caller; the oldest answers are deleted first."""
        max_bytes: PositiveInt = 32 * 1024 * 1024
        """Bytes of the request of a call that is to be kept; a larger one is refused, with the advice to send `store:
        false`."""
        background: PositiveInt = 4
        """Background responses that each process generates at once."""
        waiting: PositiveInt = 100
        """Background responses that may wait in each process; more are refused."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.host = host
        self.store = Store(host)
        self.runs = Runs(self.store, host, settings.background, settings.waiting)
        self.retention = Retention(self.store, host, settings.keep_days, settings.entries, settings.caller_bytes)
        self.periodic = PeriodicTasks(host.background)
        host.register_caller_data(CallerAnswers(self.retention))

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        receipt = None if call.route == "internal" else call.receipt  # calls made by plugins are not stored
        if receipt is None or receipt.head["object"] != RESPONSE:
            refuse(call)
        if receipt is None:
            return await call_next(call)
        call, receipt = await self.continued(call, receipt)
        if receipt.head.get("truncation") == "auto":
            call_next = partial(fitted, call_next=call_next)
        if not receipt.head["store"]:
            return await call_next(call)
        input = self.weighed(receipt)
        if receipt.head.get("background"):
            return await self.runs.start(call, receipt, input, call_next)
        await self.store.ready()
        began = self.host.clock.time()
        reply = await call_next(call)
        return reply.through(partial(self.kept, call, receipt, input, began, reply.facts))

    async def continued(self, call: Call, receipt: Receipt) -> tuple[Call, Receipt]:
        """The call with all previous items inserted after its instructions (those of earlier responses do not apply),
        and with references replaced by the items that they refer to."""
        ask, previous = call.ask, call.extra.get(CONTINUED)
        if receipt.head["object"] != RESPONSE or not isinstance(ask, Chat):
            return call, receipt
        input = await resolved(self.store, call.caller, receipt.input)
        if input is receipt.input and not previous:
            return call, receipt
        before = messages(await self.store.items(call.caller, previous)) if previous else ()
        lead = 1 if receipt.head["instructions"] else 0
        instructions, asked, question = ask.messages[:lead], ask.messages[lead:], ask.question
        if input is not receipt.input:
            receipt, asked = replace(receipt, input=input), messages(input)
            question = last_words(asked)
        ask = replace(ask, messages=(*instructions, *before, *asked), question=question)
        return call.but(ask=ask, receipt=receipt), receipt

    def weighed(self, receipt: Receipt) -> str:
        input = orjson.dumps(receipt.input)
        if len(input) > self.settings.max_bytes:
            message = (
                f"The request is too large to be stored, over {self.settings.max_bytes} bytes; send 'store': false."
            )
            raise TooLarge(message, param="store", code="too_large_to_store")
        return input.decode()

    async def kept(
        self, call: Call, receipt: Receipt, input: str, began: float, facts: Mapping[str, str], source: Events
    ) -> Events:
        """The events; the answer is stored before the last event has been passed on."""
        owner, answer = call.caller, document_builder(receipt, call.stream, facts)
        try:
            async for event in source:
                answer.hear(event)
                yield event
        except ProxyError as error:
            if (failed := answer.failure(error)) is not None:
                with suppress(Busy):
                    await self.store.add(owner, failed, input, began)
            raise
        await self.store.add(owner, answer.document(), input, began)

    async def __aenter__(self) -> Self:
        self.runs.open()
        self.periodic.every(EVERY, self.retention.tidy, "deleting old answers", calm=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.periodic.end()
        await self.runs.close()
        await self.store.settled()

    def routes(self) -> Iterable[Route]:
        from plugins.stored.completions import Completions
        from plugins.stored.responses import Responses

        yield from Responses(self.store, self.runs, self.host).routes()
        yield from Completions(self.store, self.host).routes()


def refuse(call: Call) -> None:
    """Raises BadCall for fields of responses in a request of another kind."""
    for name in sorted(Stored.fields):
        if call.extra.get(name):
            raise BadCall(f"'{name}' is a field of POST /v1/responses.", param=name, code="unsupported_parameter")
