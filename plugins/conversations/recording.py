"""One exchange on its way into its conversation: what was asked, and the answer as it is given."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import case

from plugins.conversations.items import detailed
from plugins.conversations.messages import Said, Status, answer_of
from plugins.conversations.output import Output
from plugins.conversations.store import Cut, Store
from plugins.conversations.tables import TALKS
from plugins.conversations.turns import Turn, given_back, released
from proxy.errors import Busy, NotFound, ProxyError
from proxy.streams import Answer
from proxy.types import Call, Chat, Events, Finish, Message

log = logging.getLogger(__name__)
OWN_MODEL: Final = "own_model"
"""The tag of an experiment's call that has the model that its caller asked for."""
TITLE: Final = 60
"""Letters of a title that is made from a message."""


@dataclass(slots=True)
class Recording:
    """Keeps the exchange and gives the turn back, once, when the answer is complete or will never be.

    new: messages that are not stored yet.  system: what the model is told at the outset, None leaves it as it is.
    keep_cut: whether answers are kept that are not complete.  sent: letters of the whole prompt.
    entitle: is told of the first exchange, once it is kept.  cut: what models are told no more from now on.
    output: the answer as a response, where its client reads it as one.
    """

    store: Store
    turn: Turn
    call: Call
    keep_cut: bool
    new: Sequence[Message] = ()
    system: str | None = None
    sent: int = 0
    entitle: Callable[[Sequence[Said]], None] | None = None
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
        """In a task of its own: a client that leaves now must not undo what was answered."""
        if not self.over:
            self.over = True
            await self.detached(self.keep() if self.whole or self.keep_cut else self.give_back())

    async def failed(self) -> None:
        """There is no answer: nothing is kept, and a conversation that would have begun has not."""
        self.over = True
        await self.detached(self.give_back())

    async def detached(self, work: Coroutine[Any, Any, None]) -> None:
        """Raises Busy, with the turn given back here at least, where no task can be started."""
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
        except ProxyError as error:  # the answer has failed in any case, and of what its client knows
            log.warning("an incomplete answer in the conversation %s could not be stored: %s", self.turn.talk.id, error)

    async def give_back(self) -> None:
        talk = self.turn.talk
        try:
            if self.turn.fresh:
                await self.store.undo(talk)
            await given_back(self.store, talk.owner, talk.id, self.turn.token)
        finally:
            self.turn.end()

    async def keep(self) -> None:
        talk, database, saids = self.turn.talk, self.store.database, self.saids()
        try:
            async with database.writing() as connection:
                # Where another process took this one for dead, it stays the other's turn.  An exchange is kept as one,
                # so that nothing is torn.
                await self.store.append(connection, talk, saids, **self.columns(), **released(self.turn.token))
                if self.cut is not None:
                    await self.store.leave_out(connection, talk, self.cut)
            if not talk.title and self.entitle is not None:
                self.entitle([*map(Said, said_by([one.message for one in saids], self.question))])
        except NotFound:
            log.info("the conversation %s was deleted while it was answered", talk.id)
        finally:
            self.turn.end()

    def saids(self) -> list[Said]:
        asked = [Said(one, call=self.call.id) for one in self.new]
        choice = self.answer.choice(0)
        if not self.whole and not (choice.texts or choice.thoughts or choice.tool_calls):
            return asked
        finish = choice.finish if self.whole else ""
        model = self.facts.get("model", self.call.model)
        given = Said(
            answer_of(choice), status=self.status, finish=finish, model=model, usage=self.answer.usage,
            call=self.call.id,
        )  # fmt: skip
        if self.output is not None:
            return [*asked, self.output.kept(given, self.answer, self.whole)]
        return [*asked, detailed(given, choice)]

    @property
    def question(self) -> str:
        """As it is kept: without what no database holds."""
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
        """What else changes in the conversation."""
        talk, usage = self.turn.talk, self.answer.usage
        asked = self.call.tags.get(OWN_MODEL, self.call.model)
        changed: dict[str, Any] = {"model": talk.model or asked.replace("\0", "")}
        if self.system is not None:
            changed["system"] = self.system
        if not talk.title and (title := title_of(said_by(self.new, self.question))):
            untitled = TALKS.c.title == ""  # its owner may have given it one by now
            changed["title"] = case((untitled, title), else_=TALKS.c.title)
            changed["titled"] = case((untitled, "first"), else_=TALKS.c.titled)
        if usage is not None and usage.prompt_tokens:
            changed |= {
                "prompt_tokens": TALKS.c.prompt_tokens + usage.prompt_tokens,
                "completion_tokens": TALKS.c.completion_tokens + (usage.completion_tokens or 0),
            }
            if not self.rests_on_passages:  # which are in the prompt that its upstream has counted
                changed |= {"read_letters": self.sent, "read_tokens": usage.prompt_tokens}
        return changed


def said_by(messages: Sequence[Message], question: str) -> list[Message]:
    """The messages, with the client's own words in place of what a template made of them."""
    users = [one for one in messages if one.role == "user"]
    if not question or any(one.text == question for one in users):
        return list(messages)
    return [Message("user", question), *(one for one in messages if one.role != "user")]


def title_of(messages: Sequence[Message]) -> str:
    """The beginning of the first thing that a user says."""
    text = next((" ".join(one.text.split()) for one in messages if one.role == "user" and one.text.strip()), "")
    if len(text) <= TITLE:
        return text
    return text[: TITLE - 1].rsplit(" ", 1)[0] + "…"
