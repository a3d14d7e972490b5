"""What may be asked of a model, in no dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from msgspec import Struct, field

from proxy.clock import Moment

JSON: TypeAlias = Any
Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Level: TypeAlias = Literal["low", "medium", "high", "max"]


class Image(Struct, frozen=True):
    """A picture in a message: standard base64 without a `data:` prefix, or, until the edge fetched it, a URL."""

    base64: str
    url: str = ""


class ToolCall(Struct, frozen=True):
    """A model's wish to call a function.  `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


class Message(Struct, frozen=True):
    """One turn.  `name` is the function's in a `tool` message, else the participant's."""

    role: Role
    text: str = ""
    images: tuple[Image, ...] = ()
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


class Tool(Struct, frozen=True):
    """A function that the model may call; `parameters` is a JSON schema of type object."""

    name: str
    description: str = ""
    parameters: Mapping[str, JSON] = {}
    strict: bool = False


class ToolChoice(Struct, frozen=True):
    """How the tools may be used; `names` restricts them, empty means all of them."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] = ()


class Format(Struct, frozen=True):
    """The answer is JSON; where `schema` is given it must fit it, which is checked where `strict`."""

    schema: Mapping[str, JSON] | None = None
    strict: bool = True


class Chat(Struct, frozen=True, weakref=True):
    """What is asked of a chat model, in no dialect.

    options: only those that the caller gave: temperature, top_p, top_k, min_p, typical_p, seed, stop (list),
        max_tokens (None for no bound, not even the model's own), presence_penalty, frequency_penalty,
        repeat_penalty, repeat_last_n, num_keep.
    think: None leaves it to the model.
    logprobs: None for none, else how many alternatives a token, 0..20.
    question: the client's own last words, whatever plugins put around them.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    format: Format | None = None
    options: Mapping[str, JSON] = {}
    think: bool | Level | None = None
    logprobs: int | None = None
    n: int = 1
    question: str = ""


def pictured_at(messages: Sequence[Message]) -> str | None:
    """The field that has the first pictures, as a request with these messages calls it."""
    return next((f"messages[{index}].content" for index, one in enumerate(messages) if one.images), None)


def last_words(messages: Sequence[Message]) -> str:
    """Of the user; "" where they said nothing."""
    return next((one.text for one in reversed(messages) if one.role == "user"), "")


class Complete(Struct, frozen=True, kw_only=True):
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
    options: Mapping[str, JSON] = {}
    think: bool | Level | None = None
    logprobs: int | None = None
    n: int = 1
    best_of: int = 1


class Embed(Struct, frozen=True, kw_only=True):
    """Texts that want vectors; `dimensions` None leaves the model's own."""

    inputs: tuple[str, ...]
    dimensions: int | None = None


Spelling: TypeAlias = Callable[[str | None], str | None]


def as_it_is(param: str | None) -> str | None:
    return param


def untold() -> None:
    """Where nobody asks."""


class Receipt(Struct, frozen=True):
    """What a call was in its client's own dialect, for those who keep it; no model reads it.

    head: the document of the answer before anything was answered: id, object, when it was asked for, and what it
        repeats of the request.
    input: what was asked, as the client will read it again: items, or messages.
    complete: when the answer was, so that who writes it and who keeps it say the same.
    spelled: what the client called a field that an inner one's name stands for.
    right: told when nothing was found wrong with the call, and a model is about to be asked.
    """

    head: Mapping[str, JSON]
    input: Sequence[JSON]
    complete: Moment = field(default_factory=Moment)
    spelled: Spelling = as_it_is
    right: Callable[[], None] = untold


Ask: TypeAlias = Chat | Complete | Embed
