"""What of a conversation a model is told, and what becomes of the rest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydantic import PositiveInt

from plugins.conversations.messages import Said
from plugins.conversations.store import Store, Summary
from plugins.conversations.talks import Talk
from plugins.conversations.window import Room, kept_from, kept_last
from plugins.conversations.writing import Writing
from proxy.config import Strict
from proxy.errors import ProxyError
from proxy.types import Call, Chat, Message

log = logging.getLogger(__name__)
LETTERS: Final = 3.0
"""Letters that a token has, about, before one was measured; and how few and how many are believed."""
FEWEST: Final = 1.0
MOST: Final = 5.0
CONTEXT: Final = 4096
"""Ollama's own window on a small machine, where none is pinned."""
BEFORE: Final = "Summary of what was said before:\n\n"


class Window(Strict):
    """How much of a conversation a model is told.  Once it is more, it is cut to half of that."""

    tokens: PositiveInt | None = None
    """Tokens of a prompt, estimated by what the last one took; unset is three quarters of the model's `num_ctx`, or of
    4096 where that is not pinned, and less where `max_tokens` leaves less."""
    turns: PositiveInt | None = None
    """Exchanges: a user's question and all that follows it; unset is as many as fit."""


class Summarise(Strict):
    """What is left out is summarised by a model, through the chain `internal`."""

    model: str | None = None
    """Which; unset is the model of the call."""
    keep: PositiveInt | None = None
    """Exchanges that are told word by word, at most; unset is as many as fit half of the window."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a model is told.  left_out: messages that it is not; summary: what it is told in their place."""

    turns: Sequence[Said]
    left_out: int
    summary: Summary | None

    @property
    def fact(self) -> str:
        """For the header; "" where everything is told."""
        if not self.left_out:
            return ""
        told = f"told={len(self.turns)}, left_out={self.left_out}"
        return told if self.summary is None else f"{told}, summarised_up_to={self.summary.upto}"

    def messages(self) -> list[Message]:
        head = [] if self.summary is None else [Message("user", BEFORE + self.summary.text)]
        return [*head, *(one.message for one in self.turns)]


@dataclass(frozen=True, slots=True)
class Memory:
    store: Store
    writing: Writing
    window: Window
    summarise: Summarise | None

    async def kept(self, call: Call, talk: Talk, stored: Sequence[Said], new: Sequence[Message], system: str) -> Kept:
        """stored: at least what models are still told."""
        shown = [one for one in stored if one.position >= talk.first]
        summary = None
        if talk.first > 1 and self.summarise is not None:
            async with self.store.database.reading() as connection:
                summary = await self.store.summary(connection, talk)
        outset = len(system) + (0 if summary is None else len(summary.text))
        start = kept_from(self.room(call, talk), outset, shown, new)
        if not start:
            return Kept(shown, talk.messages - len(shown), summary)
        if self.summarise is not None and self.summarise.keep is not None:
            start = max(start, kept_last(shown, self.summarise.keep))
        first = shown[start].position if start < len(shown) else shown[-1].position + 1
        summary = await self.summarised(call, talk, await self.dropped(talk, shown[:start], summary), summary)
        if summary is not None and summary.upto >= first - 1:
            await self.store.add_summary(talk, summary, first)
        else:
            await self.store.change(talk.owner, talk.id, {"first": first})
        return Kept(shown[start:], talk.messages - len(shown) + start, summary)

    def room(self, call: Call, talk: Talk) -> Room:
        letters = LETTERS
        if talk.read_tokens:
            letters = min(max(talk.read_letters / talk.read_tokens, FEWEST), MOST)
        return Room(self.window.tokens or self.tokens(call), self.window.turns, letters)

    def tokens(self, call: Call) -> int:
        context = self.store.host.models.window(call.model) or CONTEXT
        assert isinstance(call.ask, Chat)  # noqa: S101  (nothing else has a conversation)
        wanted = call.ask.options.get("max_tokens") or 0
        return max(context - max(wanted, context // 4), context // 4)

    async def dropped(self, talk: Talk, going: Sequence[Said], before: Summary | None) -> Sequence[Said]:
        """What is left out and in no summary yet: what goes now, and what went where none could be written."""
        after = 0 if before is None else before.upto
        if self.summarise is None or going[0].position <= after + 1:
            return going
        async with self.store.database.reading() as connection:
            earlier = await self.store.turns(connection, talk, after + 1)
        return [*(one for one in earlier if one.position < going[0].position), *going]

    async def summarised(
        self, call: Call, talk: Talk, dropped: Sequence[Said], before: Summary | None
    ) -> Summary | None:
        """The new one; the one before where there is none, so that what it lacks is summarised the next time."""
        if self.summarise is None:
            return None
        call.progress("summarising the conversation")
        model = self.summarise.model or call.model
        if self.summarise.model is not None:
            call = call.but(models=None)
        try:
            text = await self.writing.summary(call.but(model=model), dropped, before)
        except ProxyError as error:
            log.warning("the conversation %s could not be summarised: %s", talk.id, error)
            return before
        return Summary(text, dropped[-1].position, model=model)


def headed(ask: Chat, system: str, kept: Kept, new: Sequence[Message]) -> Chat:
    head = [Message("system", system)] if system else []
    told = (*head, *kept.messages(), *new)
    question = ask.question or next((one.text for one in reversed(told) if one.role == "user"), "")
    return replace(ask, messages=told, question=question)
