"""Finds the answer to a question that means the same in other words."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from pydantic import Field, PositiveInt

from plugins.cache import key
from plugins.cache.semantic.index import Index
from plugins.cache.semantic.likeness import LONGEST, alike
from proxy.config import Strict
from proxy.errors import ProxyError
from proxy.host import Host
from proxy.streams import collect
from proxy.types import JSON, Call, Chat, Embed, Handler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

log = logging.getLogger(__name__)
Known = TypeVar("Known")
Told = TypeVar("Told")
PATIENCE: Final = 2.0
"""Seconds that a question's vector may take; without it the call goes on as if nothing were like it."""
OFTEN: Final = 60.0
"""Seconds between two lines of the log that say so."""
REMEMBERED: Final = 10_000
"""Pairs that were given, and pairs that are vetoed."""
AGREE: Final = 0.85
"""Cosine of two answers that say the same, about."""
AUDITS: Final = 2
"""At once."""
BLANK: Final = "\0"


class Settings(Strict):
    """Gives answers again to questions that mean the same in other words.  Never safe: read docs/caching.md first."""

    model: str = Field(min_length=1)
    """The model that makes vectors of questions; it is asked through the chain `internal`."""
    threshold: float = Field(0.98, ge=0.9, le=1)
    """Cosine from which on two questions may mean the same."""
    audit: float = Field(0.05, ge=0, le=1)
    """The part of these answers that is generated anew afterwards, to measure how many were wrong."""
    questions: PositiveInt = 20_000
    """Questions that each process remembers; a vector of 768 numbers takes 3 KB."""


@dataclass(frozen=True, slots=True)
class Near:
    """A question, and all that must be the same around it."""

    sphere: str
    question: str
    vector: Vector


class State:
    """Outlives reloads; nothing of it is kept over a restart, or shared with other processes."""

    def __init__(self) -> None:
        self.index = Index()
        self.given: OrderedDict[tuple[str, str], tuple[Near, str]] = OrderedDict()
        """By caller and id of the call: what was asked, and where the answer is that was given."""
        self.vetoed: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        """Sphere, question, and where the answer is that is not given to it again."""
        self.hits = self.audited = self.wrong = self.failed = 0
        self.auditing = 0
        self.told = float("-inf")

    def stats(self) -> dict[str, JSON]:
        """wrong_hit_rate: None before anything was audited."""
        return {
            "hits": self.hits,
            "questions": self.index.size,
            "audited": self.audited,
            "wrong": self.wrong,
            "wrong_hit_rate": round(self.wrong / self.audited, 4) if self.audited else None,
            "vetoed": len(self.vetoed),
            "errors": self.failed,
        }


class Semantic:
    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.host = host
        self.state = host.kept("cache semantic", State)

    async def near(self, call: Call, stamp: str, tenant: str) -> Near | None:
        """The question of a call that may be like another; None for what never may."""
        sphere = sphere_of(call, f"{stamp} {self.settings.model}", tenant)
        if sphere is None or not isinstance(call.ask, Chat):
            return None
        vector = await self.vector(call.ask.question, call)
        return None if vector is None else Near(sphere, call.ask.question, vector)

    def found(self, near: Near) -> Iterator[tuple[str, float]]:
        """Where answers to like questions are, the nearest first, and the cosines."""
        for where, question, cosine in self.state.index.near(near.sphere, near.vector, self.settings.threshold):
            vetoed = (near.sphere, near.question, where) in self.state.vetoed
            if not vetoed and alike(near.question, question):
                yield where, cosine

    def learn(self, near: Near, where: str) -> None:
        self.state.index.add(near.sphere, where, near.question, near.vector, self.settings.questions)

    def lost(self, near: Near, where: str) -> None:
        """There is no answer any more."""
        self.state.index.drop(near.sphere, where)

    def gave(self, call: Call, near: Near, where: str) -> None:
        self.state.hits += 1
        remember(self.state.given, (call.caller, call.id), (near, where))

    def refused(self, caller: str, call: str) -> None:
        """A caller found an answer bad; if it was another question's, the two are no pair any more."""
        if (pair := self.state.given.pop((caller, call), None)) is not None:
            self.veto(*pair)

    def veto(self, near: Near, where: str) -> None:
        remember(self.state.vetoed, (near.sphere, near.question, where), None)

    async def vector(self, text: str, call: Call) -> Vector | None:
        """Of unit length; None where there is none, or none in time."""
        asked = call.but(
            route="internal",
            model=self.settings.model,
            models=None,
            ask=Embed(inputs=(text,)),
            stream=False,
            extra={},
            headers={},
            deadline=None,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await collect(await self.host.send(asked))
        except (ProxyError, TimeoutError) as error:
            self.tell(str(error) or f"it took more than {PATIENCE:g} s")
            return None
        if answer.vectors is None or not len(answer.vectors.values):
            return None
        vector: Vector = answer.vectors.values[0]
        return vector

    def tell(self, why: str) -> None:
        self.state.failed += 1
        if (now := self.host.clock.monotonic()) - self.state.told >= OFTEN:
            self.state.told = now
            log.warning("No vectors for the semantic cache, which is done without: %s", why)

    def audits(self) -> bool:
        """Whether this hit is one of those that are looked into."""
        return self.state.auditing < AUDITS and self.host.clock.uniform(0, 1) < self.settings.audit

    async def audit(self, call: Call, call_next: Handler, given: str) -> bool:
        """Whether an answer that was given says the same as one that is generated anew, by their vectors."""
        self.state.auditing += 1
        try:
            answer = await collect(await call_next(call.but(stream=False, deadline=None)))
            one, other = [await self.vector(text, call) for text in (given, answer.choice(0).text)]
        finally:
            self.state.auditing -= 1
        if one is None or other is None:
            return True
        right = float(one @ other) >= AGREE
        self.state.audited += 1
        self.state.wrong += not right
        return right


def remember(pairs: OrderedDict[Known, Told], known: Known, told: Told) -> None:
    pairs[known] = told
    while len(pairs) > REMEMBERED:
        pairs.popitem(last=False)


def sphere_of(call: Call, stamp: str, tenant: str) -> str | None:
    """What is the same for all questions that may be alike: everything but the question itself.

    None for calls with tools, with pictures, or whose question does not stand in the last user message once.
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
    return key.key_of(key.told_of([tenant, key.asked_of(around)], call.route, stamp))
