"""An OpenAI chat request -> Chat.  Source: OpenAI's API reference, "Create chat completion".

`FIELDS` has one row for each supported field and says what is done with it.  The parameter table in the docs is
generated from these rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from proxy.errors import BadCall
from proxy.types import JSON, ToolChoice
from proxy.wire import openai_fields as fields
from proxy.wire import read
from proxy.wire.openai_fields import Asked, Field
from proxy.wire.openai_messages import Limits

TWINS = {"max_tokens": "max_completion_tokens", "tools": "functions", "tool_choice": "function_call"}


def read_chat(body: JSON, limits: Limits, theirs: Collection[str] = (), brings: Collection[str] = ()) -> Asked:
    """Parse and check a request's body.

    theirs: the fields that the chain's plugins declared.
    brings: those of them that add messages, so that the request needs none; also prefixes of model names, with a colon
    at the end, that do so.
    Raises BadCall, which names the first field that is wrong or not supported.
    """
    if type(body) is not dict:
        raise BadCall(f"The body must be a JSON object, but is {read.kind_of(body)}.", code="invalid_type")
    asked = Asked(limits)
    brought = body.get("messages") == [] and any(_brings(one, body) for one in brings)
    if brought:
        body = {name: value for name, value in body.items() if name != "messages"}
    fields.read_fields(asked, body, FIELDS, theirs)
    read.filled(read.needed(body, "model", "model"), "model")
    if not brought:
        read.needed(body, "messages", "messages")
    for one, other in TWINS.items():
        if body.get(one) is not None and body.get(other) is not None:
            _alike(one, body[one], other, body[other])
    together(asked, "tool_choice" if body.get("function_call") is None else "function_call")
    return asked


def _brings(one: str, body: JSON) -> bool:
    model = body.get("model")
    return body.get(one) is not None or (one.endswith(":") and type(model) is str and model.startswith(one))


def _alike(one: str, first: JSON, other: str, second: JSON) -> None:
    if type(first) not in (int, str) or first != second:
        message = f"'{one}' and '{other}' are two names for the same thing; send only one of them."
        raise BadCall(message, param=other, code="invalid_parameter_combination")


def together(asked: Asked, choice: str) -> None:
    """Check combinations of fields.  choice: the name of the field with the tool choice.  Raises BadCall."""
    if asked.top_logprobs and not asked.logprobs:
        raise BadCall("'top_logprobs' requires 'logprobs' to be true.", param="top_logprobs")
    for name, native in fields.OLLAMA_NAMES.items() if asked.native else ():
        if native in asked.native and asked.options.get(native, asked.native[native]) != asked.native[native]:
            asked.notes[f"options.{name}"] = "ignored"
    if asked.tool_choice == ToolChoice():
        return
    names = {tool.name for tool in asked.tools}
    if asked.tool_choice.mode != "auto" and asked.tool_choice.mode != "none" and not names:
        tools = "functions" if choice == "function_call" else "tools"
        raise BadCall(f"'{choice}' is only allowed when '{tools}' are given.", param=choice)
    for name in asked.tool_choice.names:
        if name not in names:
            message = f"Invalid '{choice}': no tool is called '{name[:80]}'."
            raise BadCall(message, param=choice, code="invalid_value")


FIELDS: Mapping[str, Field] = {
    "model": Field("honoured", fields.read_model, "Name or alias of a model."),
    "messages": Field(
        "honoured",
        fields.read_messages,
        "`developer` is treated as `system`; text and image parts stay one message, text first; `file` parts are "
        "converted to text by the plugin `documents`; tool messages may have images, too; several assistant messages "
        "at the end are merged.",
    ),
    "stream": Field("honoured", fields.read_stream, "Server-sent events."),
    "stream_options": Field("honoured", fields.read_stream_options, "`include_usage`; others are ignored."),
    "max_tokens": Field("honoured", fields.read_option("max_tokens"), "At least 1."),
    "max_completion_tokens": Field("honoured", fields.read_option("max_tokens"), "The same as `max_tokens`."),
    "temperature": Field("honoured", fields.read_option("temperature"), "0 to 2; the model's own default if absent."),
    "top_p": Field("honoured", fields.read_option("top_p"), "0 to 1; the model's own default if absent."),
    "presence_penalty": Field("honoured", fields.read_option("presence_penalty"), "-2 to 2."),
    "frequency_penalty": Field("honoured", fields.read_option("frequency_penalty"), "-2 to 2."),
    "seed": Field(
        "honoured", fields.read_option("seed"), "Makes a call repeatable, as far as the model's server allows."
    ),
    "stop": Field("honoured", fields.read_option("stop"), f"A string, or up to {fields.MOST_STOPS} of them."),
    "n": Field(
        "emulated",
        fields.read_n,
        "That many calls at once, with `seed`, `seed + 1`, …; limited by `requests.max_choices`.",
    ),
    "logprobs": Field("honoured", fields.read_logprobs, "Of the answer's tokens."),
    "top_logprobs": Field("honoured", fields.read_top_logprobs, "0 to 20, with `logprobs`."),
    "response_format": Field(
        "honoured",
        fields.read_response_format,
        "JSON is also asked for in the prompt, with its schema; the answer is checked unless `strict` is false. A "
        "`json_object` may have its schema beside it, as `schema` or `value`.",
    ),
    "tools": Field(
        "honoured",
        fields.read_tools,
        "Functions; arguments of `strict` ones are checked against their schema.",
    ),
    "tool_choice": Field(
        "emulated",
        fields.read_tool_choice,
        "`auto` is native; `none` hides the tools; `required` and named ones are enforced by a schema.",
    ),
    "parallel_tool_calls": Field("emulated", fields.read_parallel, "`false` keeps the first call."),
    "functions": Field("honoured", fields.read_functions, "Deprecated by OpenAI; answered in the deprecated format."),
    "function_call": Field("emulated", fields.read_function_call, "Deprecated by OpenAI; as `tool_choice`."),
    "reasoning_effort": Field(
        "honoured",
        fields.read_effort,
        "`none` is off; `minimal` becomes low and `xhigh` becomes max; ignored if the model cannot think.",
    ),
    "options": Field(
        "honoured",
        fields.read_options,
        "Ollama's sampling options; load-time ones are set by the operator and ignored.",
    ),
    "user": Field("carried", fields.read_carried_text, "For the records."),
    "metadata": Field(
        "carried", fields.read_metadata, "Up to 16 pairs of strings, of 64 and 512 characters, for the records."
    ),
    "store": Field("carried", fields.read_carried_flag, "For plugins that keep answers."),
    "service_tier": Field("carried", fields.read_carried_text, "For the records."),
    "safety_identifier": Field("carried", fields.read_carried_text, "For the records."),
    "prompt_cache_key": Field("carried", fields.read_carried_text, "For plugins that choose a warm host."),
    "prompt_cache_options": Field("carried", fields.read_carried, "For plugins that choose a warm host."),
    "prompt_cache_retention": Field("carried", fields.read_carried_text, "For the records."),
    "verbosity": Field("ignored", fields.read_ignored, "Local models have no such control."),
    "keep_alive": Field(
        "ignored", fields.read_ignored, "The operator sets in `models:` how long a model stays loaded."
    ),
    "logit_bias": Field("refused", fields.read_refused, "Ollama has none."),
    "audio": Field("refused", fields.read_refused, "Local models produce text only."),
    "modalities": Field("refused", fields.read_refused, 'Anything but `["text"]`.'),
    "moderation": Field("refused", fields.read_refused, "There is no moderation service to ask."),
    "prediction": Field("refused", fields.read_refused, "Ollama has none."),
    "web_search_options": Field("refused", fields.read_refused, "Nothing is fetched."),
}
