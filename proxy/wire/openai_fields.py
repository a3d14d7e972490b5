"""Readers for the fields of an OpenAI chat request, one per field."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from proxy.asks import last_words
from proxy.errors import BadCall
from proxy.types import JSON, Chat, Format, Level, Message, Tool, ToolChoice
from proxy.wire import openai_messages, read
from proxy.wire.openai_messages import Limits

# Ollama's sampling options; the others take effect when a model is loaded, and are set by the operator.
SAMPLING: Mapping[str, Callable[[JSON, str], JSON]] = {
    "temperature": lambda value, at: read.number(value, at, 0, 2),
    "top_p": lambda value, at: read.number(value, at, 0, 1),
    "top_k": lambda value, at: read.whole(value, at, -1, 2**31 - 1),
    "min_p": lambda value, at: read.number(value, at, 0, 1),
    "typical_p": lambda value, at: read.number(value, at, 0, 1),
    "seed": lambda value, at: read.whole(value, at, -(2**63), 2**63 - 1),
    "stop": lambda value, at: _stops(value, at),
    "max_tokens": lambda value, at: read.whole(value, at, 1, 2**31 - 1),
    "presence_penalty": lambda value, at: read.number(value, at, -2, 2),
    "frequency_penalty": lambda value, at: read.number(value, at, -2, 2),
    "repeat_penalty": lambda value, at: read.number(value, at, 0, 10),
    "repeat_last_n": lambda value, at: read.whole(value, at, -1, 2**31 - 1),
    "num_keep": lambda value, at: read.whole(value, at, -1, 2**31 - 1),
}
OLLAMA_NAMES = {**{name: name for name in SAMPLING if name != "max_tokens"}, "num_predict": "max_tokens"}
MOST_STOPS = 64
"""Maximum number of stop sequences; code editors send dozens."""
BESIDE = ("schema", "value")
"""Fields with the schema of a `json_object`: of llama.cpp, Together and Fireworks, and of Hugging Face's clients."""
ENDLESS = (-1, -2)
"""Values of Ollama's `num_predict` that mean no limit."""


@dataclass(slots=True)
class Asked:
    """A chat request, while it is parsed field by field."""

    limits: Limits
    model: str = ""
    stream: bool = False
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    format: Format | None = None
    options: dict[str, JSON] = field(default_factory=dict)
    native: dict[str, JSON] = field(default_factory=dict)
    """Options from Ollama's `options`; OpenAI's own fields take precedence."""
    think: bool | Level | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    n: int = 1
    include_usage: bool = False
    legacy_functions: bool = False
    about: dict[str, JSON] = field(default_factory=dict)
    extra: dict[str, JSON] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """What was done with fields that were not simply honoured: `emulated`, `changed` or `ignored`."""

    def chat(self) -> Chat:
        return Chat(
            messages=self.messages,
            tools=self.tools,
            tool_choice=self.tool_choice,
            parallel_tool_calls=self.parallel_tool_calls and not self.legacy_functions,
            format=self.format,
            options={**self.native, **self.options},
            think=self.think,
            logprobs=self.top_logprobs if self.logprobs else None,
            n=self.n,
            question=last_words(self.messages),
        )


Read = Callable[[Asked, JSON, str], None]
Fate = Literal["honoured", "emulated", "carried", "ignored", "refused"]


@dataclass(frozen=True, slots=True)
class Field:
    """How one field of a request is handled.  says: a description for the documentation."""

    fate: Fate
    read: Read
    says: str


def read_fields(asked: Asked, body: dict[str, JSON], known: Mapping[str, Field], theirs: Collection[str]) -> None:
    """Read every field of a body by its row.  Plugins' fields go to `extra`; unknown ones are ignored, with a note.

    Raises BadCall, which names the first field that is wrong or not supported.
    """
    for name, value in body.items():
        if name in theirs:
            read.not_deep(value, name, asked.limits.max_depth)
            asked.extra[name] = value
        elif value is None:
            continue
        elif row := known.get(name):
            row.read(asked, value, name)
        else:
            asked.notes[name] = "ignored"


def read_model(asked: Asked, value: JSON, at: str) -> None:
    asked.model = read.model(value, at)


def read_messages(asked: Asked, value: JSON, at: str) -> None:
    asked.messages = openai_messages.messages(value, asked.limits)
    asked.notes |= dict.fromkeys(openai_messages.unheard(value), "ignored")


def read_stream(asked: Asked, value: JSON, at: str) -> None:
    asked.stream = read.flag(value, at)


def read_stream_options(asked: Asked, value: JSON, at: str) -> None:
    options = read.mapping(value, at)
    if (usage := options.get("include_usage")) is not None:
        asked.include_usage = read.flag(usage, f"{at}.include_usage")
    asked.notes |= {f"{at}.{name}": "ignored" for name in options if name != "include_usage"}


def read_option(name: str) -> Read:
    check = SAMPLING[name]

    def reader(asked: Asked, value: JSON, at: str) -> None:
        checked = check(value, at)
        if checked != []:  # an empty list of stop sequences leaves the model's own in effect
            asked.options[name] = checked

    return reader


def _stops(value: JSON, at: str) -> list[str]:
    stops = [value] if type(value) is str else read.array(value, at)
    if len(stops) > MOST_STOPS:
        raise BadCall(f"Invalid '{at}': more than {MOST_STOPS} sequences.", param=at, code="array_above_max_length")
    return [read.filled(stop, at) for stop in stops]


def read_options(asked: Asked, value: JSON, at: str) -> None:
    for name, given in read.mapping(value, at).items():
        if given is None:
            continue
        if name == "num_predict" and given in ENDLESS:
            asked.native["max_tokens"] = None
        elif neutral := OLLAMA_NAMES.get(name):
            asked.native[neutral] = SAMPLING[neutral](given, f"{at}.{name}")
        else:
            asked.notes[f"{at}.{name}"] = "ignored"


def read_n(asked: Asked, value: JSON, at: str) -> None:
    asked.n = read.whole(value, at, 1, asked.limits.max_choices)
    if asked.n > 1:
        asked.notes[at] = "emulated"


def read_logprobs(asked: Asked, value: JSON, at: str) -> None:
    asked.logprobs = read.flag(value, at)


def read_top_logprobs(asked: Asked, value: JSON, at: str) -> None:
    asked.top_logprobs = read.whole(value, at, 0, 20)


def read_response_format(asked: Asked, value: JSON, at: str) -> None:
    kind = read.one_of(read.mapping(value, at).get("type"), f"{at}.type", ("text", "json_object", "json_schema"))
    beside = next((name for name in BESIDE if kind == "json_object" and value.get(name) is not None), "")
    known = ("type", "json_schema", beside)
    asked.notes |= {f"{at}.{name}": "ignored" for name in value if name not in known and value[name] is not None}
    if beside:
        schema = read.mapping(value[beside], f"{at}.{beside}")
        read.not_deep(schema, f"{at}.{beside}", asked.limits.max_depth)
        asked.format = Format(schema)
    elif kind == "json_object":
        asked.format = Format()
    elif kind == "json_schema":
        given = read.mapping(read.needed(value, "json_schema", f"{at}.json_schema"), f"{at}.json_schema")
        schema = {} if given.get("schema") is None else read.mapping(given["schema"], f"{at}.json_schema.schema")
        asked.format = formatted(given, schema, f"{at}.json_schema", asked.limits)


def formatted(given: dict[str, JSON], schema: dict[str, JSON], at: str, limits: Limits) -> Format:
    """The format that an answer must match.  given: the object with the schema, at `at`."""
    read.not_deep(schema, f"{at}.schema", limits.max_depth)
    if schema and (description := given.get("description")) is not None:  # the model reads it with the schema
        schema = {"description": read.text(description, f"{at}.description"), **schema}
    strict = given.get("strict")
    return Format(schema, strict is None or read.flag(strict, f"{at}.strict"))


def read_tools(asked: Asked, value: JSON, at: str) -> None:
    asked.tools = openai_messages.tools(value, asked.limits)
    asked.notes |= dict.fromkeys(openai_messages.unheard_of_tools(value), "ignored")


def read_functions(asked: Asked, value: JSON, at: str) -> None:
    given = {f"{at}[{index}]": one for index, one in enumerate(openai_messages.bounded(value, at))}
    found = {name: openai_messages.function(one, name, asked.limits) for name, one in given.items()}
    asked.tools = openai_messages.distinct(found)
    asked.legacy_functions = True


def read_tool_choice(asked: Asked, value: JSON, at: str) -> None:
    if type(value) is str:
        asked.tool_choice = ToolChoice(read.one_of(value, at, ("none", "auto", "required")))
        return
    kind = read.one_of(read.mapping(value, at).get("type"), f"{at}.type", ("function", "allowed_tools"))
    if kind == "function":
        asked.tool_choice = ToolChoice("required", (_named(value, at),))
    else:
        allowed = read.mapping(read.needed(value, kind, f"{at}.{kind}"), f"{at}.{kind}")
        mode: Literal["auto", "required"] = read.one_of(allowed.get("mode"), f"{at}.{kind}.mode", ("auto", "required"))
        listed = read.array(read.needed(allowed, "tools", f"{at}.{kind}.tools"), f"{at}.{kind}.tools")
        if not listed:
            raise BadCall(f"Invalid '{at}': no tool is allowed.", param=f"{at}.{kind}.tools", code="empty_array")
        asked.tool_choice = ToolChoice(mode, tuple(_named(one, f"{at}.{kind}.tools") for one in listed))


def _named(value: JSON, at: str) -> str:
    function = read.needed(read.mapping(value, at), "function", f"{at}.function")
    name = read.needed(read.mapping(function, f"{at}.function"), "name", f"{at}.function.name")
    return read.filled(name, f"{at}.function.name")


def read_function_call(asked: Asked, value: JSON, at: str) -> None:
    if type(value) is str:
        asked.tool_choice = ToolChoice(read.one_of(value, at, ("none", "auto")))
    else:
        name = read.needed(read.mapping(value, at), "name", f"{at}.name")
        asked.tool_choice = ToolChoice("required", (read.filled(name, f"{at}.name"),))


def read_parallel(asked: Asked, value: JSON, at: str) -> None:
    asked.parallel_tool_calls = read.flag(value, at)


# OpenAI's levels, and Ollama's names for them; if a level becomes another one, a note says so.
EFFORTS: Mapping[str, bool | Level] = {
    "none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max",
}  # fmt: skip


def read_effort(asked: Asked, value: JSON, at: str) -> None:
    effort = read.one_of(value, at, tuple(EFFORTS))
    asked.think = EFFORTS[effort]
    if effort in ("minimal", "xhigh"):
        asked.notes[at] = "changed"


def read_carried(asked: Asked, value: JSON, at: str) -> None:
    read.not_deep(value, at, asked.limits.max_depth)
    asked.about[at] = value


def read_metadata(asked: Asked, value: JSON, at: str) -> None:
    given = read.mapping(value, at)
    if len(given) > 16:
        raise BadCall(f"Invalid '{at}': more than 16 pairs.", param=at, code="object_above_max_properties")
    for key, one in given.items():
        name = f"{at}.{key[:64]}"
        if len(key) > 64 or len(read.text(one, name)) > 512:
            message = f"Invalid '{name}': names may have up to 64 characters, and values up to 512."
            raise BadCall(message, param=name, code="string_above_max_length")
    asked.about[at] = given


def read_carried_text(asked: Asked, value: JSON, at: str) -> None:
    asked.about[at] = read.text(value, at)


def read_carried_flag(asked: Asked, value: JSON, at: str) -> None:
    asked.about[at] = read.flag(value, at)


def read_ignored(asked: Asked, value: JSON, at: str) -> None:
    asked.notes[at] = "ignored"


ASKS_NOTHING: Mapping[str, Sequence[JSON]] = {"logit_bias": ({},), "modalities": ([], ["text"])}


def read_refused(asked: Asked, value: JSON, at: str) -> None:
    if value not in ASKS_NOTHING.get(at, ()):
        raise BadCall(
            f"'{at}' is not supported: local models do not offer this.",
            param=at,
            code="unsupported_parameter",
        )
