"""Requests to Ollama's native API -> ours.  Defaults are Ollama's: `stream` is true.

`truncate` and load-time options are set by the operator, so clients' are ignored, which a header reports.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from proxy.errors import BadCall
from proxy.types import JSON, Complete, Embed, Format, Image, Level, Message, Role, ToolCall
from proxy.wire import openai_fields as fields
from proxy.wire import openai_messages, read
from proxy.wire.openai_fields import Asked, Field
from proxy.wire.openai_messages import Limits

ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
LEVELS: tuple[Level, ...] = ("low", "medium", "high", "max")
NO_TIME: Final = re.compile(r"[+-]?0+(\.0*)?(ns|us|µs|ms|s|m|h)?")
"""A duration of 0 in Go's notation."""


SPELLED: Final = {"reasoning_effort": "think", "response_format": "format"}
"""Names of fields in OpenAI's chat API, and what Ollama calls them."""


def spelled(param: str | None) -> str | None:
    """The name in a native request for a field of OpenAI's chat API."""
    return SPELLED.get(param or "", param)


@dataclass(slots=True)
class AskedNatively(Asked):
    """A native request, while it is parsed field by field."""

    stream: bool = True
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    raw: bool = False
    images: tuple[Image, ...] = ()
    inputs: tuple[str, ...] = ()
    dimensions: int | None = None
    unload: bool = False
    """keep_alive is 0."""

    def complete(self) -> Complete:
        return Complete(
            prompts=(self.prompt,),
            raw=self.raw and self.prompt != "",  # an empty prompt only loads the model, even with `raw`
            suffix=self.suffix,
            system=self.system,
            images=self.images,
            format=self.format,
            options={**self.native, **self.options},
            think=self.think,
            logprobs=self.top_logprobs if self.logprobs else None,
        )

    def embed(self) -> Embed:
        return Embed(inputs=self.inputs, dimensions=self.dimensions)


def read_native(body: JSON, known: Mapping[str, Field], limits: Limits, theirs: Collection[str] = ()) -> AskedNatively:
    """Parse a body by one of the tables below.  Raises BadCall, which names the first wrong field."""
    if type(body) is not dict:
        raise BadCall(f"The body must be a JSON object, but is {read.kind_of(body)}.", code="invalid_type")
    asked = AskedNatively(limits)
    fields.read_fields(asked, body, known, theirs)
    read.filled(read.needed(body, "model", "model"), "model")
    return asked


def _native(asked: Asked) -> AskedNatively:
    """The request as this module's type: the readers below are used only in its own tables."""
    if not isinstance(asked, AskedNatively):
        raise TypeError("a native field in another dialect")
    return asked


# --- messages -----------------------------------------------------------------------------------------


def _messages(asked: Asked, value: JSON, at: str) -> None:
    items = enumerate(read.array(value, at))
    asked.messages = tuple(
        openai_messages.plain(one) or _message(read.mapping(one, f"{at}[{i}]"), f"{at}[{i}]", asked.limits)
        for i, one in items
    )


def _message(item: dict[str, JSON], at: str, limits: Limits) -> Message:
    role = read.text(read.needed(item, "role", f"{at}.role"), f"{at}.role").lower()
    return Message(
        read.one_of(role, f"{at}.role", ROLES),
        _text(item, "content", at),
        _pictures(item.get("images") or [], f"{at}.images", limits),
        _text(item, "thinking", at),
        tuple(
            _tool_call(one, f"{at}.tool_calls[{index}]", index)
            for index, one in enumerate(read.array(item.get("tool_calls") or [], f"{at}.tool_calls"))
        ),
        _text(item, "tool_call_id", at),
        _text(item, "tool_name", at) if role == "tool" else "",
    )


def _text(item: Mapping[str, JSON], name: str, at: str) -> str:
    value = item.get(name)
    return "" if value is None else read.text(value, f"{at}.{name}")


def _pictures(value: JSON, at: str, limits: Limits) -> tuple[Image, ...]:
    found = []
    for index, one in enumerate(read.array(value, at)):
        name = f"{at}[{index}]"
        picture = read.filled(one, name)
        openai_messages.check_image(read.base64_bytes(picture, name, limits.max_image_bytes), name)
        found.append(Image(picture))
    return tuple(found)


def _tool_call(value: JSON, at: str, index: int) -> ToolCall:
    call = read.mapping(value, at)
    function = read.mapping(read.needed(call, "function", f"{at}.function"), f"{at}.function")
    arguments = read.mapping(function.get("arguments") or {}, f"{at}.function.arguments")
    name = read.filled(read.needed(function, "name", f"{at}.function.name"), f"{at}.function.name")
    return ToolCall(_text(call, "id", at) or f"call_{index}", name, read.dumped(arguments))


# --- one reader per field -----------------------------------------------------------------------------


def _think(asked: Asked, value: JSON, at: str) -> None:
    asked.think = value if type(value) is bool else read.one_of(value, at, LEVELS)


def _format(asked: Asked, value: JSON, at: str) -> None:
    if value in ("json", ""):
        asked.format = Format() if value else None
    else:
        read.not_deep(read.mapping(value, at), at, asked.limits.max_depth)
        asked.format = Format(value, strict=False)  # Ollama enforces it by a grammar, but does not check the answer


def _logprobs(asked: Asked, value: JSON, at: str) -> None:
    asked.logprobs = read.flag(value, at)


def _keep_alive(asked: Asked, value: JSON, at: str) -> None:
    asked.notes[at] = "ignored"
    _native(asked).unload = value == 0 or (type(value) is str and NO_TIME.fullmatch(value) is not None)


def _truncate(asked: Asked, value: JSON, at: str) -> None:
    if read.flag(value, at):
        asked.notes[at] = "ignored"


def _prompt(asked: Asked, value: JSON, at: str) -> None:
    _native(asked).prompt = read.text(value, at)


def _suffix(asked: Asked, value: JSON, at: str) -> None:
    _native(asked).suffix = read.text(value, at)


def _system(asked: Asked, value: JSON, at: str) -> None:
    _native(asked).system = read.text(value, at)


def _template(asked: Asked, value: JSON, at: str) -> None:
    if read.text(value, at):  # Ollama's command line always sends one, mostly empty
        raise BadCall(
            f"'{at}' is not supported: templates are set by the operator.", param=at, code="unsupported_parameter"
        )


def _raw(asked: Asked, value: JSON, at: str) -> None:
    _native(asked).raw = read.flag(value, at)


def _images(asked: Asked, value: JSON, at: str) -> None:
    _native(asked).images = _pictures(value, at, asked.limits)


def _input(asked: Asked, value: JSON, at: str) -> None:
    items = [value] if type(value) is str else read.array(value, at, asked.limits.max_inputs)
    texts = tuple(read.text(one, f"{at}[{index}]") for index, one in enumerate(items))
    _native(asked).inputs = () if texts == ("",) and type(value) is str else texts


def _text_alone(asked: Asked, value: JSON, at: str) -> None:
    _input(asked, read.text(value, at), at)


def _dimensions(asked: Asked, value: JSON, at: str) -> None:
    _native(asked).dimensions = read.whole(value, at, 0, 1_000_000) or None


COMMON: Mapping[str, Field] = {
    "model": Field("honoured", fields.read_model, "Name or alias of a model."),
    "options": Field("honoured", fields.read_options, "Sampling options; load-time ones are set by the operator."),
    "keep_alive": Field("ignored", _keep_alive, "Set by the operator."),
    "truncate": Field("ignored", _truncate, "Nothing is ever truncated: an overflow is a 400."),
}
GENERATED: Mapping[str, Field] = {
    **COMMON,
    "stream": Field("honoured", fields.read_stream, "True by default."),
    "format": Field("honoured", _format, "`json` or a JSON schema."),
    "think": Field("honoured", _think, "A boolean or a level."),
    "logprobs": Field("honoured", _logprobs, "Of the answer's tokens."),
    "top_logprobs": Field("honoured", fields.read_top_logprobs, "0 to 20."),
    "shift": Field("ignored", fields.read_ignored, "Set by the operator."),
}
CHAT: Mapping[str, Field] = {
    **GENERATED,
    "messages": Field("honoured", _messages, "An empty list loads the model."),
    "tools": Field("honoured", fields.read_tools, "Functions."),
}
GENERATE: Mapping[str, Field] = {
    **GENERATED,
    "prompt": Field("honoured", _prompt, "An empty one loads the model."),
    "suffix": Field("honoured", _suffix, "For models that can insert."),
    "system": Field("honoured", _system, "In place of the model's own."),
    "raw": Field("honoured", _raw, "The prompt is given to the model unchanged."),
    "images": Field("honoured", _images, "PNG, JPEG or WebP in base64."),
    "template": Field("refused", _template, "Templates are set by the operator; an empty one is accepted."),
    "context": Field("ignored", fields.read_ignored, "Deprecated by Ollama; send the turns to `/api/chat`."),
}
EMBED: Mapping[str, Field] = {
    **COMMON,
    "input": Field("honoured", _input, "A string or a list of strings; none loads the model."),
    "dimensions": Field("honoured", _dimensions, "Fewer than the model's own."),
}
EMBEDDINGS: Mapping[str, Field] = {
    **COMMON,
    "prompt": Field("honoured", _text_alone, "A string; an empty one loads the model."),
}
