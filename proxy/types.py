"""The nouns of the pipeline: a Call goes in, a Reply of Events comes out."""

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
from proxy.sources import Searched as Searched
from proxy.sources import Sources as Sources
from proxy.witness import NOBODY, Try, Witness

if TYPE_CHECKING:  # numpy is imported by the first call that needs it, not at start
    import numpy as np
    from numpy.typing import NDArray

Who: TypeAlias = Literal["public", "user", "admin"]


# --- what is asked ---------------------------------------------------------------------------------


def unheard(text: str) -> None:
    """The progress of a call that nobody watches."""


class Call(Struct, frozen=True):
    """One request on its way in.  Nobody changes it; a plugin passes on a changed copy.

    route: the name of the chain that it goes through.
    key: id of the API key that it came with, "" where there is none.
    models: patterns such as `gemma*` of the models that the key opens; None is every one.
    about: what the client says of the call and no model reads: user, metadata, store, service_tier, …
    extra: body fields that plugins declared as theirs.
    tags: facts that outer plugins leave for inner ones.
    deadline: when nobody waits for the answer any more.
    headers: request headers that plugins declared as theirs, by their names in lower case.
    connect_timeout: seconds that an upstream may take to accept a connection.
    trail: headers that every hop hands on: the request's id, W3C trace context, and the hops so far.
    progress: tells a waiting client in words why it waits.
    receipt: what is to be kept of the call, where its client asked for that.
    witness: told what becomes of it before anything of its answer comes.
    trying: which try of a call it is, where somebody further out makes tries.
    meter: where it is measured, its route, since a plugin's own call may be made from another, and a number, which
        `CallEnded.meter` repeats, since clients may give two calls one id.
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
    witness: Witness = NOBODY
    trying: Try | None = None
    meter: str = ""

    if TYPE_CHECKING:

        def but(self, **changes: Any) -> Call:
            """A copy with these fields changed."""

    else:
        but = Struct.__replace__  # a method of C: one of Python's before it would take twice as long


# --- what is answered ------------------------------------------------------------------------------


class Text(Struct, frozen=True, gc=False, tag=True, array_like=True):
    """Words of the answer; a logprob is a mapping of token, logprob, bytes and top_logprobs."""

    text: str
    choice: int = 0
    logprobs: tuple[Mapping[str, JSON], ...] = ()


class Thinking(Struct, frozen=True, gc=False, tag=True, array_like=True):
    """Words of the reasoning before the answer."""

    text: str
    choice: int = 0


class ToolCalled(Struct, frozen=True, gc=False, tag=True, array_like=True):
    """One whole call of a function; `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str
    choice: int = 0


class Finish(Struct, frozen=True, gc=False, tag=True, array_like=True):
    """A choice is complete: `stop`, `length` or `tool_calls`."""

    reason: str
    choice: int = 0


class Usage(Struct, frozen=True, gc=False, tag=True, array_like=True):
    """What the call took, of all choices together; None where the upstream did not say.  Times in ns."""

    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None = None
    load_ns: int = 0
    prompt_ns: int = 0
    eval_ns: int = 0
    thinking_tokens: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Embeddings, one row an input: float32, shape (inputs, dimensions), unit length."""

    values: NDArray[np.float32]


Said: TypeAlias = Text | Thinking | ToolCalled | Finish | Usage | Sources | Searched
"""Events of an answer in words: arrays that begin with their kind, where they are kept as JSON."""
Event: TypeAlias = Said | Vectors
Events: TypeAlias = AsyncGenerator[Event, None]
Stage: TypeAlias = Callable[[Events], Events]
Closer: TypeAlias = Callable[[], Awaitable[None] | None]


class Reply(Struct, frozen=True):
    """One answer on its way out.  Its first event has already arrived.

    Whoever receives a Reply either returns it, perhaps `through` a stage, or closes it.
    facts: what is known before the first event; the edge shows them as `x-gemmapy-…` headers.
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
        """`closer` runs when the reply is closed, whether or not its events were ever asked for."""
        return Reply(self.events, self.facts, (*self.closers, closer))

    async def aclose(self) -> None:
        """Close the outermost stage first, its source still open; every closer runs, even after one raised."""
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
    """Who asks, and what that opens.

    key: id of the API key, "" where there is none.
    models: patterns of the models that it opens, and routes: names of the chains; None is every one.
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
        """Whose figures this caller is told who asks for a user's; None is everybody's.  Raises Denied."""
        if self.is_admin:
            return user
        if user is not None and user != self.name:
            raise Denied("Only admins may name other users.", code="insufficient_permissions")
        return self.name


# --- who handles it --------------------------------------------------------------------------------

Handler: TypeAlias = Callable[[Call], Awaitable[Reply]]


@runtime_checkable
class Plugin(Protocol):
    """Sits in a chain.  Who only hands a call on, or to a coroutine of its own, needs not be one itself.

    Class attributes say more of it: `fields` and `headers` (lower case) name the parts of a request that are its own,
    and `place` what it does to a call, of which `check` judges the order of a chain:
    `defers` calls, `records` them, `chooses` what they are, `begins` them anew, `limits` them, `remembers` what was
    said, `changes` what is asked, `keeps` answers, or `tries` again.
    `prefixes`: how names of models begin that are its own until it has put a model there, which it then asks
    `host.models.check` about.  `brings`: fields that bring messages, and those `prefixes` that do.  `flags`: booleans.
    `announces`: whether it tells of each try of every call that it is handed (`Attempt`), so that nobody further out
    need do it.
    `asks`: chains of its own endpoints' calls.  `measures`: whether it hears what calls took (`CallEnded`), so that it
    is told of those, too, that are not let into a chain in which it stands.
    """

    def __call__(self, call: Call, call_next: Handler) -> Awaitable[Reply]: ...


@runtime_checkable
class Fitted(Protocol):
    """Stands in a chain as suits who stands further in."""

    def fitted(self, inner: Sequence[Plugin]) -> Plugin: ...


@runtime_checkable
class Around(Protocol):
    """Looks at each plugin that stands further in, in whose place it puts one of its own."""

    def around(self, name: str, plugin: Plugin) -> Plugin: ...


@dataclass(frozen=True, slots=True)
class Route:
    """An HTTP endpoint beside the chains; `{names}` in `path` become arguments of `handle`."""

    method: str
    path: str
    handle: Callable[..., Awaitable[web.StreamResponse]]
    who: Who = "admin"
    errors: Callable[[ProxyError], bytes] | None = None
    """How the dialect writes an error; None is OpenAI's way."""


@runtime_checkable
class Endpoints(Protocol):
    """Is mounted beside the chains."""

    def routes(self) -> Iterable[Route]: ...
