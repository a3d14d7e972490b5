"""Finds cached answers to questions that mean the same in other words."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace
from pydantic import Field, PositiveInt

from plugins.cache import key
from plugins.cache.semantic.index import Index
from plugins.cache.semantic.likeness import LONGEST, alike, at_odds
from plugins.cache.semantic.pairs import KnownPairs, Pairs
from proxy.config import Strict
from proxy.errors import ProxyError
from proxy.host import Host
from proxy.meter import metered
from proxy.observer import NOBODY
from proxy.stores.keyvalue import KeyValue
from proxy.streams import collect
from proxy.types import JSON, Call, Chat, Embed, Handler
from proxy.wire.ids import timely_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

log = logging.getLogger(__name__)
PATIENCE: Final = 2.0
"""Timeout in seconds for embedding a question; after it the call continues as if no question were similar."""
OFTEN: Final = 60.0
"""Minimum seconds between two warnings about missing vectors."""
REST: Final = 5.0
"""Seconds without any embedding after a timeout; otherwise every cache miss would wait for its own timeout."""
AGREE: Final = 0.85
"""Approximate cosine from which two answers say the same."""
AUDITS: Final = 2
"""Maximum number of audits at the same time."""
BLANK: Final = "\0"


class Settings(Strict):
    """Answers questions that mean the same in other words from the cache.  Never entirely safe: read docs/caching.md
    first."""

    model: str = Field(min_length=1)
    """The embedding model for questions; it is called through the chain `internal`."""
    threshold: float = Field(0.98, ge=0.9, le=1)
    """Cosine from which two questions may mean the same."""
    audit: float = Field(0.05, ge=0, le=1)
    """The share of these hits for which an answer is generated afterwards, to measure how many were wrong."""
    questions: PositiveInt = 20_000
    """Questions that each process remembers; a vector of 768 numbers takes 3 KB."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its vector.  context: digest of its context.  where: the key of its own answer."""

    context: str
    question: str
    vector: Vector
    where: str

    def pair(self, where: str) -> str:
        """The digest of this question paired with the one whose answer is at `where`; the same from either side."""
        return key.key_of(key.canonical_form(sorted((self.where, where)), "", self.context))


@dataclass(slots=True)
class State:
    """State that survives reloads.  Only pairs also survive a restart and are shared with other processes."""

    index: Index = field(default_factory=Index)
    pairs: KnownPairs = field(default_factory=KnownPairs)
    hits: int = 0
    audited: int = 0
    wrong: int = 0
    failed: int = 0
    auditing: int = 0
    told: float = float("-inf")
    rests: float = float("-inf")
    """Until when nothing is embedded, in monotonic seconds."""

    def stats(self) -> dict[str, JSON]:
        """Statistics for the API.  wrong_hit_rate: None before the first audit."""
        return {
            "hits": self.hits,
            "questions": self.index.size,
            "audited": self.audited,
            "wrong": self.wrong,
            "wrong_hit_rate": round(self.wrong / self.audited, 4) if self.audited else None,
            "vetoed": len(self.pairs.vetoed),
            "errors": self.failed,
        }


class Semantic:
    """store: the cache's, which shares pairs among processes.  tenant: gives the tenant of a caller."""

    def __init__(self, settings: Settings, host: Host, store: KeyValue, tenant: Callable[[str], str]) -> None:
        self.settings = settings
        self.host = host
        self.state = host.process_state("cache semantic", State)
        self.pairs = Pairs(self.state.pairs, store, tenant)

    async def near(self, where: str, call: Call, stamp: str, tenant: str) -> Question | None:
        """The call's question with its vector; None if it cannot be matched or embedded.  where: key of its answer."""
        context = context_digest(call, f"{stamp} {self.settings.model}", tenant)
        if context is None or not isinstance(call.ask, Chat):
            return None
        vector = await self.vector(call.ask.question, call)
        return None if vector is None else Question(context, call.ask.question, vector, where)

    async def found(self, near: Question, caller: str) -> list[tuple[str, float]]:
        """Keys of the answers to similar questions, with the cosines, best first."""
        candidates = self.state.index.near(near.context, near.vector, self.settings.threshold)
        like = [(where, cosine) for where, question, cosine in candidates if alike(near.question, question)]
        fine = await self.pairs.open(caller, [near.pair(where) for where, _ in like])
        return [one for one, may in zip(like, fine, strict=True) if may]

    def learn(self, near: Question, where: str) -> None:
        self.state.index.add(near.context, where, near.question, near.vector, self.settings.questions)

    def lost(self, near: Question, where: str) -> None:
        """Remove a question whose answer is no longer in the cache."""
        self.state.index.drop(near.context, where)

    def gave(self, call: Call, near: Question, where: str) -> None:
        self.state.hits += 1
        told = (call.caller, call.id, near.pair(where))
        self.pairs.note(*told)
        self.host.background.start(self.pairs.tell(*told), "telling of a pair of questions")

    def refused(self, caller: str, call: str) -> None:
        """Called when an answer was rated down: if it was a semantic hit, veto the pair of questions."""
        pair = self.pairs.refused(caller, call)
        self.host.background.start(self.pairs.veto(caller, call, pair), "telling that two questions are no pair")

    async def vector(self, text: str, call: Call) -> Vector | None:
        """The text's embedding, of unit length; None if there is none or it takes too long."""
        import numpy as np

        if self.host.clock.monotonic() < self.state.rests:
            return None
        asked = internal_copy(call).but(
            model=self.settings.model, models=None, ask=Embed(inputs=(text,)), extra={}, headers={}
        )
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await collect(await self.host.send(asked))
        except TimeoutError:
            self.state.rests = self.host.clock.monotonic() + REST
            self.tell(f"it took more than {PATIENCE:g} s")
            return None
        except ProxyError as error:
            self.tell(str(error))
            return None
        if answer.vectors is None or not len(answer.vectors.values):
            return None
        vector = np.asarray(answer.vectors.values[0], dtype=np.float32)
        length = float(np.linalg.norm(vector))
        return vector / np.float32(length) if 0 < length < float("inf") else None

    def tell(self, why: str) -> None:
        """Count a missing vector, and log it at most once in `OFTEN` seconds."""
        self.state.failed += 1
        if (now := self.host.clock.monotonic()) - self.state.told >= OFTEN:
            self.state.told = now
            log.warning("the semantic cache is skipped, because there are no vectors: %s", why)

    def audits(self) -> bool:
        """Whether this hit is audited, by random choice."""
        return self.state.auditing < AUDITS and self.host.clock.uniform(0, 1) < self.settings.audit

    async def audit(self, call: Call, call_next: Handler, given: str) -> bool:
        """Whether a given answer says the same as a newly generated one, by vectors and by `at_odds`.

        True as well if their vectors cannot be computed.
        """
        self.state.auditing += 1
        try:
            anew = (await collect(await metered(internal_copy(call), call_next, self.host))).choice(0).text
            one, other = [await self.vector(text, call) for text in (given, anew)]
        finally:
            self.state.auditing -= 1
        if one is None or other is None:
            return True
        right = float(one @ other) >= AGREE and not at_odds(given, anew)
        self.state.audited += 1
        self.state.wrong += not right
        return right

    async def wrong(self, call: Call, near: Question, where: str) -> None:
        """Veto the pair, so that this question does not get that answer again."""
        self.pairs.note(call.caller, call.id, near.pair(where))
        await self.pairs.veto(call.caller, call.id, self.pairs.refused(call.caller, call.id))


def internal_copy(call: Call) -> Call:
    """A copy of a call for internal requests: with a new id and no tags, so that ratings and counts do not mix."""
    return call.but(id=timely_id("req_"), route="internal", tags={}, stream=False, deadline=None, observer=NOBODY)


def context_digest(call: Call, stamp: str, tenant: str) -> str | None:
    """Digest of a question's context: everything in the call except the question itself, and the tenant.

    None for calls with tools or images, for empty or long questions, and if the last user message does not contain
    the question exactly once.
    """
    ask = call.ask
    if not isinstance(ask, Chat) or ask.tools or not 0 < len(ask.question.strip()) <= LONGEST:
        return None
    if any(one.images or one.tool_calls or one.role == "tool" for one in ask.messages):
        return None
    last = next((place for place in reversed(range(len(ask.messages))) if ask.messages[place].role == "user"), None)
    if last is None or ask.messages[last].text.count(ask.question) != 1 or BLANK in ask.messages[last].text:
        return None
    blank = replace(ask.messages[last], text=ask.messages[last].text.replace(ask.question, BLANK))
    around = replace(ask, messages=(*ask.messages[:last], blank, *ask.messages[last + 1 :]))
    return key.key_of(key.canonical_form([tenant, key.asked_of(around)], call.route, stamp))
