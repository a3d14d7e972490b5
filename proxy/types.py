"""The nouns of the pipeline: a Call goes in, a Reply of Events comes out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

from aiohttp import web

from proxy.values import value

if TYPE_CHECKING:  # numpy is imported by the first call that needs it, not at start
    import numpy as np
    from numpy.typing import NDArray

JSON: TypeAlias = Any
Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Who: TypeAlias = Literal["public", "user", "admin"]


# --- what is asked ---------------------------------------------------------------------------------


@value
class Image:
    """A picture in a message: standard base64 without a `data:` prefix, or, until the edge fetched it, a URL."""

    base64: str
    url: str = ""


@value
class ToolCall:
    """A model's wish to call a function.  `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


@value
class Message:
    """One turn.  `name` is the function's in a `tool` message, else the participant's."""

    role: Role
    text: str = ""
    images: tuple[Image, ...] = ()
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is a JSON schema of type object."""

    name: str
    description: str = ""
    parameters: Mapping[str, JSON] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """How the tools may be used; `names` restricts them, empty means all of them."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Format:
    """The answer is JSON; where `schema` is given it must fit it, which is checked where `strict`."""

    schema: Mapping[str, JSON] | None = None
    strict: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """What is asked of a chat model, in no dialect.

    options: only those that the caller gave: temperature, top_p, top_k, min_p, typical_p, seed, stop (list),
        max_tokens, presence_penalty, frequency_penalty, repeat_penalty, repeat_last_n, num_keep.
    think: None leaves it to the model.
    logprobs: None for none, else how many alternatives a token, 0..20.
    question: the client's own last words, whatever plugins put around them.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    format: Format | None = None
    options: Mapping[str, JSON] = field(default_factory=dict)
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: int | None = None
    n: int = 1
    question: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """Texts that want to be continued; each prompt gets `n` choices, the best of `best_of`.

    raw: the prompt is what the model reads; else it becomes a user message in the model's own template.
    suffix: what must come after the answer; only models that can `insert` know what to do with it.
    """

    prompts: tuple[str, ...]
    raw: bool = True
    suffix: str = ""
    system: str = ""
    images: tuple[Image, ...] = ()
    format: Format | None = None
    options: Mapping[str, JSON] = field(default_factory=dict)
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: int | None = None
    n: int = 1
    best_of: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed:
    """Texts that want vectors; `dimensions` None leaves the model's own."""

    inputs: tuple[str, ...]
    dimensions: int | None = None


Ask: TypeAlias = Chat | Complete | Embed


def unheard(text: str) -> None:
    """The progress of a call that nobody watches."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request on its way in.  Nobody changes it; a plugin passes on a changed copy.

    route: the name of the chain that it goes through.
    about: what the client says of the call and no model reads: user, metadata, store, service_tier, …
    extra: body fields that plugins declared as theirs.
    tags: facts that outer plugins leave for inner ones.
    deadline: monotonic seconds of the event loop after which nobody waits for the answer.
    connect_timeout: seconds that an upstream may take to accept a connection.
    progress: tells a waiting client in words why it waits.
    """

    id: str
    route: str
    model: str
    ask: Ask
    stream: bool = False
    caller: str = "anonymous"
    about: Mapping[str, JSON] = field(default_factory=dict)
    extra: Mapping[str, JSON] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    deadline: float | None = None
    connect_timeout: float | None = None
    progress: Callable[[str], None] = field(default=unheard, compare=False)

    def but(self, **changes: Any) -> Call:
        """A copy with these fields changed; six times as fast as `dataclasses.replace`."""
        made = object.__new__(Call)
        made.__dict__.update(self.__dict__)
        made.__dict__.update(changes)
        return made


# --- what is answered ------------------------------------------------------------------------------


@value
class Text:
    """Words of the answer; a logprob is a mapping of token, logprob, bytes and top_logprobs."""

    text: str
    choice: int = 0
    logprobs: tuple[Mapping[str, JSON], ...] = ()


@value
class Thinking:
    """Words of the reasoning before the answer."""

    text: str
    choice: int = 0


@value
class ToolCalled:
    """One whole call of a function; `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str
    choice: int = 0


@value
class Finish:
    """A choice is complete: `stop`, `length` or `tool_calls`."""

    reason: str
    choice: int = 0


@value
class Usage:
    """What the call took, of all choices together; None where the upstream did not say.  Times in ns."""

    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None = None
    load_ns: int = 0
    prompt_ns: int = 0
    eval_ns: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Embeddings, one row an input: float32, shape (inputs, dimensions), unit length."""

    values: NDArray[np.float32]


Event: TypeAlias = Text | Thinking | ToolCalled | Finish | Usage | Vectors
Events: TypeAlias = AsyncGenerator[Event, None]
Stage: TypeAlias = Callable[[Events], Events]
Closer: TypeAlias = Callable[[], Awaitable[None] | None]


@value
class Reply:
    """One answer on its way out.  Its first event has already arrived.

    Whoever receives a Reply either returns it, perhaps `through` a stage, or closes it.
    facts: what is known before the first event; the edge shows them as `x-gemmapy-…` headers.
    """

    events: Events
    facts: Mapping[str, str] = field(default_factory=dict)
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
        await _close(self.closers)


async def _close(closers: tuple[Closer, ...]) -> None:
    if closers:
        try:
            if (closing := closers[0]()) is not None:
                await closing
        finally:
            await _close(closers[1:])


# --- who handles it --------------------------------------------------------------------------------

Handler: TypeAlias = Callable[[Call], Awaitable[Reply]]


@runtime_checkable
class Plugin(Protocol):
    """Sits in a chain.  A class attribute `fields` names the body fields that are its own."""

    async def __call__(self, call: Call, call_next: Handler) -> Reply: ...


@dataclass(frozen=True, slots=True)
class Route:
    """An HTTP endpoint beside the chains; `{names}` in `path` become arguments of `handle`."""

    method: str
    path: str
    handle: Callable[..., Awaitable[web.StreamResponse]]
    who: Who = "admin"


@runtime_checkable
class Endpoints(Protocol):
    """Is mounted beside the chains."""

    def routes(self) -> Iterable[Route]: ...
