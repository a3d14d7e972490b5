"""Records one exchange, the new messages and the answer, and stores it in its conversation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import case

from plugins.conversations.items import detailed
from plugins.conversations.messages import Status, StoredMessage, answer_of
from plugins.conversations.output import Output
from plugins.conversations.store import Cut, Store
from plugins.conversations.tables import TALKS
from plugins.conversations.turns import Turn, release_lease, released_columns
from proxy.errors import Busy, NotFound, ProxyError
from proxy.streams import Answer
from proxy.types import Call, Chat, Events, Finish, Message

log = logging.getLogger(__name__)
OWN_MODEL: Final = "own_model"
"""The tag with the model that the caller requested, if an experiment has replaced it."""
TITLE: Final = 60
"""Maximum characters of a title taken from a message."""


@dataclass(slots=True)
class Recording:
    """Stores the exchange and releases the turn, exactly once, when the answer is complete or has failed.

    new: messages that are not stored yet.  system: the new system prompt; None leaves it unchanged.
    keep_cut: whether incomplete answers are stored.  sent: characters of the whole prompt.
    entitle: called with the first exchange after it is stored.  cut: messages to leave out from now on.
    output: builds the items, for calls to the Responses API.
    """

    store: Store
    turn: Turn
    call: Call
    keep_cut: bool
    new: Sequence[Message] = ()
    system: str | None = None
    sent: int = 0
    entitle: Callable[[Sequence[StoredMessage]], None] | None = None
    cut: Cut | None = None
    answer: Answer = field(default_factory=Answer)
    facts: dict[str, str] = field(default_factory=dict)
    output: Output | None = None
    whole: bool = False
    broken: bool = False
    over: bool = False

    async def heard(self, events: Events) -> Events:
        try:
            async for event in events:
                self.answer.add(event)
                if self.output is not None:
                    self.output.hear(event)
                self.whole = self.whole or isinstance(event, Finish)
                yield event
        except Exception:
            self.broken = True
            raise
        if self.whole:
            await self.kept()

    async def kept(self) -> None:
        """Store the exchange in a separate task, so that a client that disconnects now does not cancel it."""
        if not self.over:
            self.over = True
            await self.detached(self.keep() if self.whole or self.keep_cut else self.give_back())

    async def failed(self) -> None:
        """Called if there is no answer: nothing is stored, and a new conversation is removed again."""
        self.over = True
        await self.detached(self.give_back())

    async def detached(self, work: Coroutine[Any, Any, None]) -> None:
        """Run this in a separate task and wait for it.

        Raises Busy if none can be started; the turn is then released in this process only.
        """
        try:
            background, name = self.store.host.background, "keeping what was said in a conversation"
            task = self.turn.turns.start(background, work, name)
        except Busy:
            self.turn.end()
            raise
        await asyncio.shield(task)

    async def closed(self) -> None:
        try:
            await self.kept()
        except ProxyError as error:  # the client already knows that the answer failed
            log.warning("an incomplete answer in the conversation %s could not be stored: %s", self.turn.talk.id, error)

    async def give_back(self) -> None:
        talk = self.turn.talk
        try:
            if self.turn.fresh:
                await self.store.undo(talk)
            await release_lease(self.store, talk.owner, talk.id, self.turn.token)
        finally:
            self.turn.end()

    async def keep(self) -> None:
        talk, database, stored_messages = self.turn.talk, self.store.database, self.stored_messages()
        try:
            async with database.writing() as connection:
                # If this turn's lease has expired, another process may hold the turn; `released` leaves it alone.  The
                # exchange is still appended in one piece.
                await self.store.append(
                    connection, talk, stored_messages, **self.columns(), **released_columns(self.turn.token)
                )
                if self.cut is not None:
                    await self.store.leave_out(connection, talk, self.cut)
            if not talk.title and self.entitle is not None:
                self.entitle(
                    [*map(StoredMessage, messages_to_store([one.message for one in stored_messages], self.question))]
                )
        except NotFound:
            log.info("the conversation %s was deleted while it was answered", talk.id)
        finally:
            self.turn.end()

    def stored_messages(self) -> list[StoredMessage]:
        asked = [StoredMessage(one, call=self.call.id) for one in self.new]
        choice = self.answer.choice(0)
        if not self.whole and not (choice.texts or choice.thoughts or choice.tool_calls):
            return asked
        finish = choice.finish if self.whole else ""
        model = self.facts.get("model", self.call.model)
        given = StoredMessage(
            answer_of(choice), status=self.status, finish=finish, model=model, usage=self.answer.usage,
            call=self.call.id,
        )  # fmt: skip
        if self.output is not None:
            return [*asked, self.output.kept(given, self.answer, self.whole)]
        return [*asked, detailed(given, choice)]

    @property
    def question(self) -> str:
        """The client's question as it is stored, without null characters."""
        return self.call.ask.question.replace("\0", "") if isinstance(self.call.ask, Chat) else ""

    @property
    def rests_on_passages(self) -> bool:
        sources = self.answer.choice(0).sources
        return sources is not None and bool(sources.passages)

    @property
    def status(self) -> Status:
        if self.whole:
            return "complete"
        return "cut" if self.broken else "left"

    def columns(self) -> dict[str, Any]:
        """The other columns of the conversation that change."""
        talk, usage = self.turn.talk, self.answer.usage
        asked = self.call.tags.get(OWN_MODEL, self.call.model)
        changed: dict[str, Any] = {"model": talk.model or asked.replace("\0", "")}
        if self.system is not None:
            changed["system"] = self.system
        if not talk.title and (title := title_of(messages_to_store(self.new, self.question))):
            untitled = TALKS.c.title == ""  # its owner may have set one meanwhile
            changed["title"] = case((untitled, title), else_=TALKS.c.title)
            changed["titled"] = case((untitled, "first"), else_=TALKS.c.titled)
        if usage is not None and usage.prompt_tokens:
            changed |= {
                "prompt_tokens": TALKS.c.prompt_tokens + usage.prompt_tokens,
                "completion_tokens": TALKS.c.completion_tokens + (usage.completion_tokens or 0),
            }
            if not self.rests_on_passages:  # they are in the upstream's token count, but not in `sent`
                changed |= {"read_letters": self.sent, "read_tokens": usage.prompt_tokens}
        return changed


def messages_to_store(messages: Sequence[Message], question: str) -> list[Message]:
    """The messages, with the client's own question in place of a templated user message."""
    users = [one for one in messages if one.role == "user"]
    if not question or any(one.text == question for one in users):
        return list(messages)
    return [Message("user", question), *(one for one in messages if one.role != "user")]


def title_of(messages: Sequence[Message]) -> str:
    """The beginning of the first user message that has text; "" if none has."""
    text = next((" ".join(one.text.split()) for one in messages if one.role == "user" and one.text.strip()), "")
    if len(text) <= TITLE:
        return text
    return text[: TITLE - 1].rsplit(" ", 1)[0] + "…"
