"""Readers for the fields of a request for a response, one per field.  Source: OpenAI's API reference, "Responses"."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from proxy.errors import BadCall
from proxy.types import JSON, Format
from proxy.wire import openai_fields as fields
from proxy.wire import openai_file_search as file_search
from proxy.wire import openai_items_in, read
from proxy.wire.ids import new_id
from proxy.wire.openai_fields import Asked, Read, formatted
from proxy.wire.openai_items import RESPONSE, Item, content_parts

KEPT: Final = "previous_response_id"
"""The field whose declaration by a plugin shows that a chain stores responses."""
OWNERS: Final = {KEPT: "stored", "background": "stored", "conversation": "conversations", "prompt": "templates"}
"""OpenAI's fields that need a plugin, and the plugin."""
DECLARED: Final = {"prompt": "template"}
"""The names under which plugins declare these fields, where they differ."""
INNER: Final = {"name": "id"}
"""Parts of the plugin's field `template`, and their names in OpenAI's `prompt`."""
SPELLED: Final = {
    "response_format": "text.format", "reasoning_effort": "reasoning.effort", "max_tokens": "max_output_tokens"
}  # fmt: skip
"""Names of fields in OpenAI's chat API, and their names here."""
NOTHING: Final[Mapping[str, JSON]] = {
    "instructions": None, "max_output_tokens": None, "max_tool_calls": None, "metadata": {},
    "parallel_tool_calls": True, "previous_response_id": None, "prompt": None, "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None}, "safety_identifier": None, "service_tier": None,
    "temperature": None, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
    "top_logprobs": 0, "top_p": None, "truncation": "disabled", "user": None,
}  # fmt: skip
"""A response's values for fields that the request omitted."""


@dataclass(slots=True)
class AskedResponse(Asked):
    """A request for a response, while it is parsed field by field.

    id: the response's.
    theirs: the fields that the chain's plugins declared.
    echo: the fields that the response repeats.
    """

    id: str = field(default_factory=lambda: new_id(RESPONSE))
    theirs: Collection[str] = ()
    items: list[Item] = field(default_factory=list)
    instructions: str = ""
    summed: bool = False
    """Whether reasoning is to be given as a summary."""
    store: bool = True
    background: bool = False
    echo: dict[str, JSON] = field(default_factory=dict)
    search: file_search.Choosing = field(default_factory=file_search.Choosing)

    def head(self, created: int) -> dict[str, JSON]:
        """The response before it has any content.  created: Unix seconds."""
        return {
            "id": self.id, "object": "response", "created_at": created, "status": "in_progress", "error": None,
            "incomplete_details": None, **NOTHING, **self.echo, "background": self.background, "model": self.model,
            "output": [], "store": self.store, "usage": None, "completed_at": None,
        }  # fmt: skip

    def spelled(self, param: str | None) -> str | None:
        """This request's name for a field of the chat API, or of a plugin."""
        outer, _, rest = (param or "").partition(".")
        if outer.startswith("messages"):  # whose indexes are not those of the items
            return "input"
        if outer in SPELLED:
            return SPELLED[outer]
        if outer == "template" and "prompt" in self.echo:
            return ".".join(filter(None, ("prompt", INNER.get(rest, rest))))
        return param


def response(asked: Asked) -> AskedResponse:
    """The request as this module's type: the readers below are used only for requests for a response."""
    if not isinstance(asked, AskedResponse):
        raise TypeError("a field of responses in another dialect")
    return asked


def _owned(asked: AskedResponse, at: str) -> None:
    """Raises BadCall if no plugin of the chain provides this field."""
    if DECLARED.get(at, at) not in asked.theirs:
        message = f"'{at}' is served by the plugin '{OWNERS[at]}', which is not in the chain 'chat' of this server."
        raise BadCall(message, param=at, code="plugin_missing")


def echoed(reader: Read) -> Read:
    """A reader that also makes the response repeat the field."""

    def read_and_echo(asked: Asked, value: JSON, at: str) -> None:
        reader(asked, value, at)
        response(asked).echo[at] = value

    return read_and_echo


def read_input(asked: Asked, value: JSON, at: str) -> None:
    mine = response(asked)
    kept = KEPT in mine.theirs  # otherwise items have nothing to refer to
    mine.items = openai_items_in.items(value, at, asked.limits, mine.id if kept else "")
    parts = (part for one in mine.items for part in content_parts(one))
    if any(part.get("detail", "auto") != "auto" for part in parts):  # local models do not support it
        asked.notes["input.input_image.detail"] = "ignored"


def read_instructions(asked: Asked, value: JSON, at: str) -> None:
    response(asked).instructions = read.text(value, at)


def read_max_tokens(asked: Asked, value: JSON, at: str) -> None:
    asked.options["max_tokens"] = fields.SAMPLING["max_tokens"](value, at)


def read_max_tool_calls(asked: Asked, value: JSON, at: str) -> None:
    read.whole(value, at, 1, 2**31 - 1)


def read_previous(asked: Asked, value: JSON, at: str) -> None:
    _owned(response(asked), at)
    asked.extra[at] = read.filled(value, at)


def read_conversation(asked: Asked, value: JSON, at: str) -> None:
    mine = response(asked)
    _owned(mine, at)
    given = value
    if type(value) is not str:
        given, at = read.needed(read.mapping(value, at), "id", f"{at}.id"), f"{at}.id"
    asked.extra["conversation"] = read.filled(given, at)
    mine.echo["conversation"] = {"id": given}


def read_prompt(asked: Asked, value: JSON, at: str) -> None:
    mine = response(asked)
    _owned(mine, at)
    given = read.mapping(value, at)
    read.not_deep(given, at, asked.limits.max_depth)
    template: dict[str, JSON] = {"name": read.filled(read.needed(given, "id", f"{at}.id"), f"{at}.id")}
    if (version := given.get("version")) is not None:
        template["version"] = read.filled(version, f"{at}.version")
    template["variables"] = read.mapping(given.get("variables") or {}, f"{at}.variables")
    asked.extra["template"] = template
    mine.echo[at] = {"id": template["name"], "version": template.get("version"), "variables": template["variables"]}


def read_store(asked: Asked, value: JSON, at: str) -> None:
    response(asked).store = read.flag(value, at)


def read_background(asked: Asked, value: JSON, at: str) -> None:
    mine = response(asked)
    mine.background = read.flag(value, at)
    if mine.background:
        _owned(mine, at)


INCLUDED: Final = ("message.output_text.logprobs", "message.input_image.image_url")
"""Supported values of `include`.  Pictures are always included."""
ABSENT: Final = (
    "reasoning.encrypted_content", "web_search_call.results",
    "web_search_call.action.sources", "code_interpreter_call.outputs", "computer_call_output.output.image_url",
)  # fmt: skip


def read_include(asked: Asked, value: JSON, at: str) -> None:
    for index, one in enumerate(read.array(value, at)):
        name = read.one_of(one, f"{at}[{index}]", (*INCLUDED, *ABSENT, file_search.RESULTS))
        if name == INCLUDED[0]:
            asked.logprobs = True
        elif name == file_search.RESULTS:
            response(asked).search.included = True
        elif name in ABSENT:
            asked.notes[f"{at}.{name}"] = "ignored"


def read_top_logprobs(asked: Asked, value: JSON, at: str) -> None:
    fields.read_top_logprobs(asked, value, at)
    asked.logprobs = asked.logprobs or asked.top_logprobs > 0


def read_reasoning(asked: Asked, value: JSON, at: str) -> None:
    given, mine = read.mapping(value, at), response(asked)
    if (effort := given.get("effort")) is not None:
        fields.read_effort(asked, effort, f"{at}.effort")
    summary = given.get("summary") or given.get("generate_summary")
    if summary is not None:
        read.one_of(summary, f"{at}.summary", ("auto", "concise", "detailed"))
        mine.summed = True
        asked.notes[f"{at}.summary"] = "emulated"
    known = ("effort", "summary", "generate_summary")
    asked.notes |= {f"{at}.{name}": "ignored" for name in given if name not in known and given[name] is not None}
    mine.echo[at] = {"effort": effort, "summary": summary}


def read_text(asked: Asked, value: JSON, at: str) -> None:
    given, form = read.mapping(value, at), None
    if given.get("format") is not None:
        form = read.mapping(given["format"], f"{at}.format")
        _format(asked, form, f"{at}.format")
    if (verbosity := given.get("verbosity")) is not None:
        read.one_of(verbosity, f"{at}.verbosity", ("low", "medium", "high"))
    asked.notes |= {f"{at}.{name}": "ignored" for name in given if name != "format" and given[name] is not None}
    response(asked).echo[at] = {"format": form or {"type": "text"}}


def _format(asked: Asked, given: dict[str, JSON], at: str) -> None:
    kind = read.one_of(given.get("type"), f"{at}.type", ("text", "json_object", "json_schema"))
    if kind == "json_object":
        asked.format = Format()
    elif kind == "json_schema":
        read.filled(read.needed(given, "name", f"{at}.name"), f"{at}.name")
        schema = read.mapping(read.needed(given, "schema", f"{at}.schema"), f"{at}.schema")
        asked.format = formatted(given, schema, at, asked.limits)


def read_truncation(asked: Asked, value: JSON, at: str) -> None:
    if read.one_of(value, at, ("auto", "disabled")) == "auto":
        asked.notes[at] = "emulated" if KEPT in response(asked).theirs else "ignored"


def read_stream_options(asked: Asked, value: JSON, at: str) -> None:
    asked.notes |= {f"{at}.{name}": "ignored" for name in read.mapping(value, at)}


def read_absent(asked: Asked, value: JSON, at: str) -> None:
    if value not in ([], {}):
        raise BadCall(
            f"'{at}' is not supported: there is no such service here.", param=at, code="unsupported_parameter"
        )
