"""Selects the part of a conversation that is sent to the model, and summarises the rest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace
from pydantic import PositiveInt

from plugins.conversations.conversation import Conversation
from plugins.conversations.messages import StoredMessage
from plugins.conversations.resent import split_system
from plugins.conversations.store import Cut, Store, Summary
from plugins.conversations.window import Room, kept_from, kept_last
from plugins.conversations.writing import CONTEXT, Writing
from proxy.config import Strict
from proxy.errors import ProxyError
from proxy.estimates import letters_beside
from proxy.types import Call, Chat, Message

log = logging.getLogger(__name__)
LETTERS: Final = 3.0
"""Characters per token that are assumed before any measurement; FEWEST and MOST limit the measured value."""
FEWEST: Final = 1.0
MOST: Final = 5.0
USUAL: Final = 200
"""Weight of the assumed value: the measurement of a prompt with so many tokens counts as much."""
BEFORE: Final = "Summary of what was said before:\n\n"


class Window(Strict):
    """How much of a conversation a model is given.  When it gets longer, it is cut to half of that."""

    tokens: PositiveInt | None = None
    """Tokens of a prompt, estimated from the last one; if unset, three quarters of the model's context (its `num_ctx`,
    or else what it is loaded with, or else what it was trained for), and less if `max_tokens` leaves less."""
    turns: PositiveInt | None = None
    """Exchanges: a user's question and all that follows it; if unset, as many as fit."""


class Summarise(Strict):
    """Has a model summarise what is left out, through the chain `internal`."""

    model: str | None = None
    """The model; if unset, the model of the call."""
    keep: PositiveInt | None = None
    """The most exchanges that are given in full; if unset, as many as fit half of the window."""


@dataclass(frozen=True, slots=True)
class SelectedHistory:
    """What is sent to the model.  left_out: number of messages not sent; summary: sent in their place.

    cut: a new cut to be stored, if more is left out than before.  failed: whether the summary is incomplete.
    """

    turns: Sequence[StoredMessage]
    left_out: int
    summary: Summary | None
    cut: Cut | None = None
    failed: bool = False

    @property
    def fact(self) -> str:
        """The value for the reply's header; "" if nothing is left out."""
        if not self.left_out:
            return ""
        told = f"told={len(self.turns)}, left_out={self.left_out}"
        told = told if self.summary is None else f"{told}, summarised_up_to={self.summary.upto}"
        return f"{told}, summary=failed" if self.failed else told

    def messages(self) -> list[Message]:
        head = [] if self.summary is None else [Message("user", BEFORE + self.summary.text)]
        return [*head, *(one.message for one in self.turns if not is_silent(one.message))]


def is_silent(message: Message) -> bool:
    """Whether the model's answer was empty; such answers are not sent, since the model would imitate them."""
    return message.role == "assistant" and not (message.text or message.thinking or message.tool_calls)


@dataclass(frozen=True, slots=True)
class NewPart:
    """A call's own part of the prompt.  system: the system prompt.  below: characters of a prompt that was too long."""

    turns: Sequence[Message]
    system: str
    below: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    store: Store
    writing: Writing
    window: Window
    summarise: Summarise | None

    async def kept(
        self, call: Call, talk: Conversation, stored: Sequence[StoredMessage], new: NewPart
    ) -> SelectedHistory:
        """What is sent to the model.  stored: the stored messages, at least those from the conversation's cut on."""
        shown = [one for one in stored if one.position >= talk.first]
        summary = None
        if talk.first > 1 and self.summarise is not None:
            async with self.store.database.reading() as connection:
                summary = await self.store.summary(connection, talk)
        assert isinstance(call.ask, Chat)  # noqa: S101  (only chats have conversations)
        outset = len(new.system) + (0 if summary is None else len(summary.text)) + letters_beside(call.ask)
        start = kept_from(await self.room(call, talk, new.below), outset, shown, new.turns)
        if not start:
            return SelectedHistory(shown, talk.messages - len(shown), summary, failed=self.lacks(summary, talk.first))
        if self.summarise is not None and self.summarise.keep is not None:
            start = max(start, kept_last(shown, self.summarise.keep))
        first = shown[start].position if start < len(shown) else shown[-1].position + 1
        made = await self.summarised(call, talk, await self.dropped(talk, shown[:start], summary), summary)
        lead = split_system([one.message for one in shown[:start]])[0] if talk.first == 1 else None
        cut = Cut(first, made if made is not summary else None, lead or "")
        return SelectedHistory(shown[start:], talk.messages - len(shown) + start, made, cut, self.lacks(made, first))

    def lacks(self, summary: Summary | None, first: int) -> bool:
        """Whether messages before this position are missing from the summary that they should be in."""
        return self.summarise is not None and first > 1 and (summary is None or summary.upto < first - 1)

    async def room(self, call: Call, talk: Conversation, below: int | None) -> Room:
        """The room for a prompt.  below: characters that it must have fewer than, if a longer one was refused."""
        letters = letters_a_token(talk)
        tokens = self.window.tokens or await self.tokens(call)
        return Room(tokens if below is None else min(tokens, int((below - 1) / letters)), self.window.turns, letters)

    async def tokens(self, call: Call) -> int:
        context = await self.store.host.models.window(call.model) or CONTEXT
        assert isinstance(call.ask, Chat)  # noqa: S101  (only chats have conversations)
        wanted = call.ask.options.get("max_tokens") or 0
        return max(context - max(wanted, context // 4), context // 4)

    async def dropped(
        self, talk: Conversation, going: Sequence[StoredMessage], before: Summary | None
    ) -> Sequence[StoredMessage]:
        """Messages to summarise: those left out now, and earlier ones for which writing a summary failed."""
        after = 0 if before is None else before.upto
        if self.summarise is None or going[0].position <= after + 1:
            return going
        async with self.store.database.reading() as connection:
            earlier = await self.store.turns(connection, talk, after + 1)
        return [*(one for one in earlier if one.position < going[0].position), *going]

    async def summarised(
        self, call: Call, talk: Conversation, dropped: Sequence[StoredMessage], before: Summary | None
    ) -> Summary | None:
        """The new summary; if the model fails, the last one that it wrote, so that the rest is summarised next time."""
        if self.summarise is None:
            return None
        call.progress("summarising the conversation")
        model = self.summarise.model or call.model
        if self.summarise.model is not None:
            call = call.but(models=None)
        summary = before
        try:
            async for one in self.writing.summaries(call.but(model=model), dropped, before, letters_a_token(talk)):
                summary = one
        except ProxyError as error:
            log.warning("the conversation %s could not be summarised: %s", talk.id, error)
        return summary


def letters_a_token(talk: Conversation) -> float:
    """Characters per token, as measured in the conversation's last prompt.

    A short prompt has little weight, because much of it is the model's template.
    """
    measured = (talk.read_letters + LETTERS * USUAL) / (talk.read_tokens + USUAL)
    return min(max(measured, FEWEST), MOST)


def headed(ask: Chat, system: str, kept: SelectedHistory, new: Sequence[Message]) -> Chat:
    if kept.cut is not None and kept.cut.lead:
        system = f"{system}\n\n{kept.cut.lead}" if system else kept.cut.lead
    head = [Message("system", system)] if system else []
    told = (*head, *kept.messages(), *new)
    question = ask.question or next((one.text for one in reversed(told) if one.role == "user"), "")
    return replace(ask, messages=told, question=question)
