"""Another model or upstream, if the requested one fails before its first event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Final, Literal, TypeAlias, cast

from pydantic import PositiveFloat, model_validator

from proxy.announcements import FellBack
from proxy.attempts import tried
from proxy.config import Strict
from proxy.errors import Cause, ConfigError, Denied, NotFound, ProxyError, TooMany, UpstreamError, was_asked
from proxy.host import Host
from proxy.meter import LATE
from proxy.types import Call, Embed, Handler, Plugin, Reply
from proxy.wire.ollama_models import canonical

log = logging.getLogger(__name__)
Condition: TypeAlias = Cause | Literal["context_length", "first_token_timeout", "model_not_found"]
USUAL: Final[tuple[Condition, ...]] = (
    "connect", "timeout", "overloaded", "load", "memory", "server", "cut", "first_token_timeout"
)  # fmt: skip
MODELS: Final = 4096
"""Number of model names whose fallbacks are cached."""
ITS_OWN: Final = frozenset({"model_not_found", "model_not_capable", "context_length_exceeded"})
"""Errors about what a model cannot do; they do not mean that the call is invalid."""


class Other(Strict):
    """One fallback, with its own conditions."""

    model: str | None = None
    """The model to use instead; if unset, the same one."""
    upstream: str | None = None
    """The upstream to use; if unset, the one that serves the model."""
    on: tuple[Condition, ...] | None = None
    """Failures of the previous one after which this one is tried; if unset, those of the plugin."""

    @model_validator(mode="after")
    def _somewhere(self) -> Other:
        if self.model is None and self.upstream is None:
            raise ValueError("a fallback names a `model`, an `upstream`, or both")
        return self


Link: TypeAlias = str | Other


@dataclass(slots=True)
class FailureTrail:
    """What was tried, and why it failed."""

    failures: list[tuple[str, str]] = field(default_factory=list)
    attempts: int = 0
    places: set[tuple[str, str | None]] = field(default_factory=set)
    """Models, and the upstreams at which they failed."""

    def add(self, call: Call, error: ProxyError, model: str) -> None:
        """model: the canonical form of its name."""
        self.places.add((model, error.facts.get("upstream")))
        self.failures.append((place_of(call), error.code or error.kind))
        self.attempts += int(error.facts.get("attempts", was_asked(error)))

    def in_words(self, last: str = "") -> str:
        steps = [f"{place} ({why})" for place, why in self.failures]
        return ", ".join([*steps, last] if last else steps)


class StartDeadline:
    """A time limit on the current task until a stream begins.  `asyncio.timeout` cancels without a message."""

    def __init__(self, limit: float) -> None:
        """limit: seconds."""
        self.task = cast("asyncio.Task[object]", asyncio.current_task())
        self.before = self.task.cancelling()
        self.ended = False
        self.timer = asyncio.get_running_loop().call_later(limit, self.end)

    def end(self) -> None:
        self.ended = True
        self.task.cancel(LATE)

    @property
    def in_vain(self) -> bool:
        """Whether only the time limit has cancelled the task; otherwise nobody waits for a fallback either."""
        return self.ended and self.task.cancelling() == self.before + 1

    def over(self) -> None:
        """Stop the timer, and take back its cancellation: it must not affect the task later."""
        self.timer.cancel()
        if self.ended:
            self.task.uncancel()


class Fallback:
    """Uses another model, or the same at another upstream, when a call fails before its first event.

    After the first event nothing is switched.  Embeddings only fall back to the same model elsewhere: another one's
    vectors would not be comparable.
    """

    place = "tries"

    class Settings(Strict):
        models: dict[str, tuple[Link, ...]] = {}  # noqa: RUF012  (pydantic copies defaults)
        """Replacements by model, in order: a model's name, or `{model, upstream, on}`.  A model's replacements hold for
        its aliases, too, unless these are listed themselves."""
        default: tuple[Link, ...] = ()
        """The same for every model that is not listed."""
        on: tuple[Condition, ...] = USUAL
        """Failures after which the next one is tried.  `context_length` sends prompts that do not fit to a model with a
        larger window; `model_not_found` uses another model if the model does not exist."""
        first_token: PositiveFloat | None = None
        """Seconds that a stream may take to begin while there is another model to try; after that it fails with
        `first_token_timeout`."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.host = host
        self.of = lru_cache(MODELS)(self.listed)
        self.chains = {canonical(name): links for name, links in settings.models.items()}
        every = [link for links in (settings.default, *settings.models.values()) for link in links]
        others = [link.on for link in every if isinstance(link, Other) and link.on is not None]
        self.watched = frozenset(settings.on).union(*others)
        """Failures after which some fallback may be used."""
        unknown = {one.upstream for one in every if isinstance(one, Other) and one.upstream} - set(
            host.models.upstreams()
        )
        if unknown:
            raise ConfigError([f"no upstream is called {name!r}" for name in sorted(filter(None, unknown))])

    def __call__(self, call: Call, call_next: Handler) -> Awaitable[Reply]:
        links = self.links(call)
        return self.caught(call, call_next, links) if links else tried(call, call_next, self.host)

    def fitted(self, inner: Sequence[Plugin]) -> Plugin:
        return self.beside if any(getattr(one, "announces", False) for one in inner) else self

    def beside(self, call: Call, call_next: Handler) -> Awaitable[Reply]:
        """Used if an inner plugin announces attempts: calls without fallbacks are left to it."""
        links = self.links(call)
        return self.caught(call, call_next, links) if links else call_next(call)

    async def caught(self, call: Call, call_next: Handler, links: tuple[Link, ...]) -> Reply:
        try:
            return await self.asked(call, call_next, self.impatient(links))
        except ProxyError as error:
            trail = FailureTrail()
            trail.add(call, error, self.host.models.named(call.model))
            return await self.elsewhere(call, call_next, links, trail, error)

    async def elsewhere(
        self, call: Call, call_next: Handler, links: tuple[Link, ...], trail: FailureTrail, error: ProxyError
    ) -> Reply:
        """The first successful answer of a fallback; otherwise raises the last failure, which lists all others.

        If a fallback cannot handle the call at all, this is not reported as the client's mistake: the failure before is
        raised, and conditions of further fallbacks may match that one, too.
        """
        last = error
        for index, link in enumerate(links):
            if not (self.fits(link, last) or self.fits(link, error)):
                continue
            here, why = switched(call, link), last.code or last.kind
            if not self.opens(here) or self.was_there(link, here, trail):
                continue
            self.host.announce(FellBack(call.id, call.caller, call.model, here.model, why, call.meter))
            call.progress(f"asking {place_of(here)} instead")
            try:
                reply = await self.asked(here, call_next, self.impatient(links[index + 1 :]))
            except ProxyError as failed:
                last, error = failed, error if failed.code in ITS_OWN else failed
                trail.add(here, failed, self.host.models.named(here.model))
            else:
                return noted(reply, trail, here)
        raise blamed(error, trail)

    def was_there(self, link: Link, here: Call, trail: FailureTrail) -> bool:
        """Whether the upstream that the fallback names has just failed with this model."""
        upstream = link.upstream if isinstance(link, Other) else None
        return upstream is not None and (self.host.models.named(here.model), upstream) in trail.places

    def opens(self, call: Call) -> bool:
        """Whether the caller may use the model; if not, the first failure must not be hidden by this one."""
        try:
            self.host.models.check(call)
        except Denied:
            return False
        return True

    def listed(self, model: str) -> tuple[Link, ...]:
        """The fallbacks of a model, by any of its names."""
        links = self.chains.get(canonical(model))
        if links is not None:
            return links
        return self.chains.get(canonical(self.host.models.real(model)), self.settings.default)

    def links(self, call: Call) -> tuple[Link, ...]:
        links = self.of(call.model)
        if not links:
            return links
        if isinstance(call.ask, Embed):
            mine = canonical(call.model)
            links = tuple(one for one in links if isinstance(one, Other) and canonical(one.model or mine) == mine)
        return tuple(link for link in links if not self.is_here(link, call))

    def is_here(self, link: Link, call: Call) -> bool:
        """Whether the fallback is what was asked for already, as when `default` names the model of the call."""
        if isinstance(link, Other) and link.upstream not in (None, call.tags.get("upstream")):
            return False
        model = link if isinstance(link, str) else link.model or call.model
        return self.host.models.named(model) == self.host.models.named(call.model)

    def impatient(self, links: tuple[Link, ...]) -> bool:
        """Whether there is a fallback for a stream that does not begin in time."""
        late = UpstreamError("", "timeout", code="first_token_timeout")
        return self.settings.first_token is not None and any(self.fits(link, late) for link in links)

    async def asked(self, call: Call, call_next: Handler, impatient: bool) -> Reply:
        return await tried(call, partial(self.in_time, call_next, impatient), self.host, also=self.goes_on)

    def goes_on(self, error: ProxyError) -> bool:
        """Whether a fallback may be used after this failure; then it counts as an attempt, unlike a call that is
        invalid for every model."""
        return bool(self.conditions(error) & self.watched)

    async def in_time(self, call_next: Handler, impatient: bool, call: Call) -> Reply:
        limit = self.settings.first_token
        if limit is None or not impatient or not call.stream:
            return await call_next(call)
        waiting = StartDeadline(limit)
        try:
            return await call_next(call)
        except asyncio.CancelledError:
            if not waiting.in_vain:
                raise
            message = f"{place_of(call)} did not begin within {limit:g} seconds."
            raise UpstreamError(message, "timeout", code="first_token_timeout") from None
        finally:
            waiting.over()

    def fits(self, link: Link, error: ProxyError) -> bool:
        allowed = link.on if isinstance(link, Other) and link.on is not None else self.settings.on
        return bool(self.conditions(error) & set(allowed))

    def conditions(self, error: ProxyError) -> set[Condition]:
        """The conditions that this failure meets; none if another model could not help."""
        if error.code == "context_length_exceeded":
            return {"context_length"}
        if error.code == "first_token_timeout":
            return {"first_token_timeout"}
        if isinstance(error, UpstreamError):
            return {error.cause}
        if isinstance(error, NotFound) and error.code == "model_not_found":
            return {"model_not_found"}
        return {"overloaded"} if isinstance(error, TooMany) else set()


def noted(reply: Reply, trail: FailureTrail, here: Call) -> Reply:
    told = trail.in_words(place_of(here))
    log.warning("request %s fell back: %s", here.id, told)
    return reply.noting(fallback=told, attempts=str(trail.attempts + int(reply.facts.get("attempts", "1"))))


def switched(call: Call, link: Link) -> Call:
    if isinstance(link, str):
        return call.but(model=link)
    tags = {**call.tags, "upstream": link.upstream} if link.upstream else call.tags
    return call.but(model=link.model or call.model, tags=tags)


def place_of(call: Call) -> str:
    upstream = call.tags.get("upstream")
    return f"{call.model} at {upstream}" if upstream else call.model


def blamed(error: ProxyError, trail: FailureTrail) -> ProxyError:
    """The last failure, with a list of everything that was tried."""
    if len(trail.failures) > 1:
        error = error.copied()
        error.facts["fallback"] = trail.in_words()
        error.facts["attempts"] = str(trail.attempts)
        error.args = (f"{error} Tried: {trail.in_words()}.",)
        error.again = False
        log.warning("no model could answer: %s", trail.in_words())
    return error
