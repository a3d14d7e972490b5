"""What can be asked of a model, in a form that is independent of any API dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from msgspec import Struct, field

from proxy.clock import Moment

JSON: TypeAlias = Any
Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Level: TypeAlias = Literal["low", "medium", "high", "max"]


class Image(Struct, frozen=True):
    """A picture in a message: standard base64 without a `data:` prefix, or a URL until the edge has fetched it."""

    base64: str
    url: str = ""


class ToolCall(Struct, frozen=True):
    """A function call that a model requested.  `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str


class Message(Struct, frozen=True):
    """One message of a chat.  `name` is that of the function in a `tool` message, else that of the participant."""

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
    """How the model may use the tools.  `names` restricts it to some of them; empty means all."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] = ()


class Format(Struct, frozen=True):
    """The answer must be JSON that matches `schema`, if there is one; this is checked only if `strict`."""

    schema: Mapping[str, JSON] | None = None
    strict: bool = True


class Chat(Struct, frozen=True, weakref=True):
    """A chat request, independent of any dialect.

    options: only those that the caller set: temperature, top_p, top_k, min_p, typical_p, seed, stop (list),
        max_tokens (None means no limit, not even the model's own), presence_penalty, frequency_penalty,
        repeat_penalty, repeat_last_n, num_keep.
    think: None leaves it to the model.
    logprobs: None for none, else the number of alternatives per token, 0..20.
    question: the text of the client's last user message, without what plugins have added to it.
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
    """The request field that contains the first pictures, such as `messages[0].content`; None if there are none."""
    return next((f"messages[{index}].content" for index, one in enumerate(messages) if one.images), None)


def last_words(messages: Sequence[Message]) -> str:
    """The text of the last user message, "" if there is none."""
    return next((one.text for one in reversed(messages) if one.role == "user"), "")


class Complete(Struct, frozen=True, kw_only=True):
    """A text completion request; each prompt gets `n` choices, the best of `best_of`.

    raw: whether the model reads the prompt as it is; else it becomes a user message in the model's own template.
    suffix: text that follows the answer; only models with the capability `insert` can use it.
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
    """An embedding request; `dimensions` None means the model's own."""

    inputs: tuple[str, ...]
    dimensions: int | None = None


Spelling: TypeAlias = Callable[[str | None], str | None]


def unchanged(param: str | None) -> str | None:
    return param


def not_stored() -> None:
    """The default of `Receipt.right`: does nothing."""


class Receipt(Struct, frozen=True):
    """What is needed to store an answer in its client's dialect.  Models do not see it.

    head: the answer's document before it has content: id, object, creation time, and the repeated request fields.
    input: the request's items or messages, as the client can read them later.
    complete: when the answer was complete, so that the sent and the stored document have the same time.
    spelled: translates an internal field name to the one in the client's request.
    right: called when all checks have passed and the call is about to go to a model.
    """

    head: Mapping[str, JSON]
    input: Sequence[JSON]
    complete: Moment = field(default_factory=Moment)
    spelled: Spelling = unchanged
    right: Callable[[], None] = not_stored


Ask: TypeAlias = Chat | Complete | Embed


def choices(ask: Ask) -> int:
    """How many choices are requested."""
    if isinstance(ask, Chat):
        return ask.n
    return ask.n * len(ask.prompts) if isinstance(ask, Complete) else 1
