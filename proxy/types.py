"""The core types of the pipeline: a Call goes in, a Reply with a stream of Events comes out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

from aiohttp import web
from msgspec import Struct

from proxy.asks import JSON as JSON
from proxy.asks import Ask as Ask
from proxy.asks import Chat as Chat
from proxy.asks import Complete as Complete
from proxy.asks import Embed as Embed
from proxy.asks import Format as Format
from proxy.asks import Image as Image
from proxy.asks import Level as Level
from proxy.asks import Message as Message
from proxy.asks import Receipt as Receipt
from proxy.asks import Role as Role
from proxy.asks import Tool as Tool
from proxy.asks import ToolCall as ToolCall
from proxy.asks import ToolChoice as ToolChoice
from proxy.clock import Deadline as Deadline
from proxy.clock import Moment as Moment
from proxy.errors import Denied, ProxyError
from proxy.observer import NOBODY, Observer, Try
from proxy.sources import Searched as Searched
from proxy.sources import Sources as Sources

if TYPE_CHECKING:  # numpy is imported by the first call that needs it, not at start
    import numpy as np
    from numpy.typing import NDArray

Who: TypeAlias = Literal["public", "user", "admin"]


# --- what is asked ---------------------------------------------------------------------------------


def unheard(text: str) -> None:
    """The default of `Call.progress`: discards the message."""


class Call(Struct, frozen=True):
    """One request on its way to the model.  It is immutable; a plugin that changes it passes on a changed copy.

    route: name of the chain that the call goes through.
    key: id of the API key that the call came with, "" if there is none.
    models: patterns such as `gemma*` of the models that the key may use; None means all.
    about: request fields that describe the call and do not reach the model: user, metadata, store, service_tier, …
    extra: body fields that plugins declared as theirs.
    tags: facts that outer plugins pass to inner ones.
    deadline: when the answer is no longer needed.
    headers: request headers that plugins declared as theirs, by name in lower case.
    connect_timeout: seconds that an upstream may take to accept a connection.
    trail: headers that are sent on to upstreams: the request's id, W3C trace context, and the hops so far (`Via`).
    progress: shows a waiting client a message that says why it waits.
    receipt: what is needed to store the answer, if the client asked for that.
    observer: is informed of what happens to the call before its answer begins.
    trying: the current try, if an outer plugin (such as `retry`) counts tries.
    meter: "" if the call is not measured, else its route and a unique number, which `CallEnded.meter` repeats, because
        clients may give two calls the same id.  The route is in it because a plugin may copy a measured call to make
        one of its own on another route, which is measured separately.
    """

    id: str
    route: str
    model: str
    ask: Ask
    stream: bool = False
    caller: str = "anonymous"
    key: str = ""
    models: tuple[str, ...] | None = None
    about: Mapping[str, JSON] = {}
    extra: Mapping[str, JSON] = {}
    headers: Mapping[str, str] = {}
    tags: Mapping[str, str] = {}
    deadline: Deadline | None = None
    connect_timeout: float | None = None
    trail: Mapping[str, str] = {}
    progress: Callable[[str], None] = unheard
    receipt: Receipt | None = None
    observer: Observer = NOBODY
    trying: Try | None = None
    meter: str = ""

    if TYPE_CHECKING:

        def but(self, **changes: Any) -> Call:
            """A copy with these fields changed."""

    else:
        but = Struct.__replace__  # implemented in C; a Python method that calls it would take twice as long


# --- what is answered ------------------------------------------------------------------------------


class Text(Struct, frozen=True, gc=False, tag=True, array_like=True):
    """A piece of the answer's text; each logprob is a mapping of token, logprob, bytes and top_logprobs."""

    text: str
    choice: int = 0
    logprobs: tuple[Mapping[str, JSON], ...] = ()


class Thinking(Struct, frozen=True, gc=False, tag=True, array_like=True):
    """A piece of the reasoning text before the answer."""

    text: str
    choice: int = 0


class ToolCalled(Struct, frozen=True, gc=False, tag=True, array_like=True):
    """One complete call of a function; `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str
    choice: int = 0


class Finish(Struct, frozen=True, gc=False, tag=True, array_like=True):
    """A choice is complete; `reason` is `stop`, `length` or `tool_calls`."""

    reason: str
    choice: int = 0


class Usage(Struct, frozen=True, gc=False, tag=True, array_like=True):
    """Tokens and times of the call, all choices together; None if the upstream did not report it.  Times in ns."""

    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None = None
    load_ns: int = 0
    prompt_ns: int = 0
    eval_ns: int = 0
    thinking_tokens: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Embeddings, one row per input: float32, shape (inputs, dimensions), unit length."""

    values: NDArray[np.float32]


Said: TypeAlias = Text | Thinking | ToolCalled | Finish | Usage | Sources | Searched
"""Events of a text answer.  Stored as JSON, each is an array that begins with its type."""
Event: TypeAlias = Said | Vectors
Events: TypeAlias = AsyncGenerator[Event, None]
Stage: TypeAlias = Callable[[Events], Events]
Closer: TypeAlias = Callable[[], Awaitable[None] | None]


class Reply(Struct, frozen=True):
    """One answer on its way to the client.  Its first event has already arrived.

    Code that receives a Reply must either return it (possibly `through` a stage) or close it.
    facts: what is known before the first event; the edge sends them as `x-gemmapy-…` headers.
    """

    events: Events
    facts: Mapping[str, str] = {}
    closers: tuple[Closer, ...] = ()

    @classmethod
    def of(cls, events: Events, **facts: str) -> Reply:
        return cls(events, facts, (events.aclose,))

    def through(self, stage: Stage) -> Reply:
        events = stage(self.events)
        return Reply(events, self.facts, (events.aclose, *self.closers))

    def noting(self, **facts: str) -> Reply:
        return Reply(self.events, {**self.facts, **facts}, self.closers)

    def on_close(self, closer: Closer) -> Reply:
        """`closer` runs when the reply is closed, even if its events were never read."""
        return Reply(self.events, self.facts, (*self.closers, closer))

    async def aclose(self) -> None:
        """Close the outermost stage first, while its source is still open.

        Every closer runs, even if another one has raised.
        """
        if len(self.closers) > 1:
            await _close(self.closers)
        elif self.closers and (closing := self.closers[0]()) is not None:
            await closing


async def _close(closers: tuple[Closer, ...]) -> None:
    if closers:
        try:
            if (closing := closers[0]()) is not None:
                await closing
        finally:
            await _close(closers[1:])


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request, and what they may use.

    key: id of the API key, "" if there is none.
    models: patterns of the models that the key may use; None means all.
    routes: names of the chains that the key may use; None means all.
    """

    name: str
    role: Who
    key: str = ""
    models: tuple[str, ...] | None = None
    routes: frozenset[str] | None = None

    @property
    def is_admin(self) -> bool:
        return self.role == "admin"

    def whose(self, user: str | None) -> str | None:
        """The user whose figures this caller gets when it asks for those of `user`; None means all users.

        Raises Denied if a caller who is not an admin asks for another user.
        """
        if self.is_admin:
            return user
        if user is not None and user != self.name:
            raise Denied("Only admins may name other users.", code="insufficient_permissions")
        return self.name


# --- who handles it --------------------------------------------------------------------------------

Handler: TypeAlias = Callable[[Call], Awaitable[Reply]]


@runtime_checkable
class Plugin(Protocol):
    """A member of a chain.  `__call__` may also be a plain method that returns an awaitable, such as `call_next(call)`.

    Optional class attributes describe the plugin:
    fields, headers: names of the body fields and headers (in lower case) that are its own.
    flags: those of its fields that are booleans.
    brings: fields and model name prefixes with which the client's `messages` may be empty.
    prefixes: prefixes of model names that it replaces by a real model, for which it must call `host.models.check`.
    place: what it does to a call, by which `check` judges the order of a chain: it `defers` calls, `records` them,
        `chooses` a variant for them, `begins` them with its own messages and model, `limits` them, `remembers`
        conversations, `changes` the request, `keeps` answers, or `tries` again.
    announces: whether it announces every try of each call (`Attempt`), so that plugins further out need not.
    asks: chains through which its own endpoints send calls.
    measures: whether it listens to `CallEnded`; calls that are refused before they enter its chain are then announced.
    """

    def __call__(self, call: Call, call_next: Handler) -> Awaitable[Reply]: ...


@runtime_checkable
class Fitted(Protocol):
    """A plugin that adapts itself to the plugins further in when the chain is built."""

    def fitted(self, inner: Sequence[Plugin]) -> Plugin: ...


@runtime_checkable
class Around(Protocol):
    """A plugin that may replace (usually wrap) each plugin further in when the chain is built."""

    def around(self, name: str, plugin: Plugin) -> Plugin: ...


@dataclass(frozen=True, slots=True)
class Route:
    """An HTTP endpoint beside the chains; `{names}` in `path` become arguments of `handle`."""

    method: str
    path: str
    handle: Callable[..., Awaitable[web.StreamResponse]]
    who: Who = "admin"
    errors: Callable[[ProxyError], bytes] | None = None
    """Writes an error in the route's dialect; None means OpenAI's form."""


@runtime_checkable
class Endpoints(Protocol):
    """A plugin with HTTP endpoints, which are mounted beside the chains."""

    def routes(self) -> Iterable[Route]: ...
