"""A request for a response -> Chat.  Source: OpenAI's API reference, "Responses".

`FIELDS` has one row for each supported field and says what is done with it.  The parameter table in the docs is
generated from these rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from proxy.errors import BadCall
from proxy.types import JSON, Message
from proxy.wire import openai_fields as fields
from proxy.wire import openai_file_search as file_search
from proxy.wire import openai_response_fields as own
from proxy.wire import openai_response_tools as tools
from proxy.wire import read
from proxy.wire.openai_chat import together
from proxy.wire.openai_fields import Field
from proxy.wire.openai_items import REFERENCE, messages
from proxy.wire.openai_messages import Limits
from proxy.wire.openai_response_fields import KEPT, AskedResponse


def read_response(body: JSON, limits: Limits, theirs: Collection[str] = ()) -> AskedResponse:
    """Parse and check a request's body.  theirs: the fields that the chain's plugins declared.

    Raises BadCall, which names the first field that is wrong or not supported.
    """
    if type(body) is not dict:
        raise BadCall(f"The body must be a JSON object, but is {read.kind_of(body)}.", code="invalid_type")
    asked = AskedResponse(limits, theirs=theirs)
    inner = (*FIELDS, file_search.KIND)  # plugins declare `file_search` as a field, but in requests it is a tool
    fields.read_fields(asked, body, FIELDS, [name for name in theirs if name not in inner])
    told = (Message("system", asked.instructions),) if asked.instructions else ()
    asked.messages = (*told, *messages(one for one in asked.items if one["type"] != REFERENCE))
    _needed(asked, body)
    _settle_store(asked, body)
    asked.tool_choice = asked.search.settled(asked.tool_choice, asked.extra, asked.notes)
    together(asked, "tool_choice")
    return asked


def _needed(asked: AskedResponse, body: Mapping[str, JSON]) -> None:
    template = asked.extra.get("template")  # from `prompt`, or the plugin's own field, which is not checked yet
    name = template.get("name") if type(template) is dict else template
    if not asked.model and type(name) is str:
        asked.model = f"template:{name}"
    if not asked.model:
        read.filled(read.needed(body, "model", "model"), "model")
    if body.get(KEPT) is not None and body.get("conversation") is not None:
        message = f"'{KEPT}' and 'conversation' both supply the earlier messages; send only one of them."
        raise BadCall(message, param="conversation", code="invalid_parameter_combination")
    if not asked.items and not any(body.get(name) is not None for name in (KEPT, "conversation", "prompt")):
        read.needed(body, "input", "input")
        raise BadCall("Invalid 'input': the array is empty.", param="input", code="empty_array")


def _settle_store(asked: AskedResponse, body: Mapping[str, JSON]) -> None:
    """Responses are stored by default, if a plugin of the chain stores them."""
    if asked.background and not asked.store:
        message = "A response in the background is fetched later: 'background' requires 'store' to be true."
        raise BadCall(message, param="store", code="invalid_parameter_combination")
    if asked.store and KEPT not in asked.theirs:
        asked.store = False
        if body.get("store"):
            asked.notes["store"] = "ignored"
    asked.about["store"] = asked.store


CARRIED: Final = own.echoed(fields.read_carried_text)
FIELDS: Final[Mapping[str, Field]] = {
    "model": Field(
        "honoured", fields.read_model, "Name or alias of a model; with `prompt`, the template's model if absent."
    ),
    "input": Field(
        "honoured",
        own.read_input,
        "A text, or items: `message`, `function_call`, `function_call_output`, `reasoning`, `file_search_call`, "
        "`item_reference` with the plugin `stored`; others are a 400. `input_file` parts are converted to text by "
        "the plugin `documents`; a picture, also one in a function's output, may be the `file_id` of a file of the "
        "plugin `files`.",
    ),
    "instructions": Field("honoured", own.echoed(own.read_instructions), "A system message before everything else."),
    "previous_response_id": Field(
        "honoured",
        own.echoed(own.read_previous),
        "Puts all items of that response, and of those before it, before the input; plugin `stored`.",
    ),
    "conversation": Field("honoured", own.read_conversation, "An id, or an object with it; plugin `conversations`."),
    "prompt": Field("honoured", own.read_prompt, "`id`, `version`, `variables` of a template; plugin `templates`."),
    "store": Field("honoured", own.read_store, "True by default; without the plugin `stored` nothing is kept."),
    "background": Field(
        "honoured", own.read_background, "The answer is generated in the background and fetched later; plugin `stored`."
    ),
    "stream": Field("honoured", fields.read_stream, "Server-sent events."),
    "stream_options": Field("ignored", own.read_stream_options, "Nothing is padded."),
    "include": Field(
        "honoured",
        own.read_include,
        "`message.output_text.logprobs`, `file_search_call.results`; pictures are always listed; other "
        "values are for tools that do not exist here.",
    ),
    "max_output_tokens": Field(
        "honoured", own.echoed(own.read_max_tokens), "At least 1; a response that reaches it is `incomplete`."
    ),
    "max_tool_calls": Field(
        "carried", own.echoed(own.read_max_tool_calls), "Limits OpenAI's own tools, of which there are none here."
    ),
    "temperature": Field("honoured", own.echoed(fields.read_option("temperature")), "0 to 2."),
    "top_p": Field("honoured", own.echoed(fields.read_option("top_p")), "0 to 1."),
    "top_logprobs": Field("honoured", own.echoed(own.read_top_logprobs), "0 to 20."),
    "reasoning": Field(
        "honoured",
        own.read_reasoning,
        "`effort` as `reasoning_effort` in chats; with `summary` the whole reasoning is given as a summary.",
    ),
    "text": Field(
        "honoured", own.read_text, "`format`: `text`, `json_object` or `json_schema`, checked unless `strict` is false."
    ),
    "tools": Field(
        "honoured",
        tools.read_tools,
        "Functions, also in a `namespace`, and `file_search` by the plugin `documents`; others are a 400 that names "
        "them. `strict` is false by default.",
    ),
    "tool_choice": Field("emulated", own.echoed(tools.read_tool_choice), "As in chats, and `file_search`."),
    "parallel_tool_calls": Field("emulated", own.echoed(fields.read_parallel), "`false` keeps the first call."),
    "truncation": Field(
        "emulated",
        own.echoed(own.read_truncation),
        "`auto` leaves out the oldest exchanges; plugin `stored`, otherwise ignored: too long an input is a 400.",
    ),
    "metadata": Field(
        "carried", own.echoed(fields.read_metadata), "Up to 16 pairs of strings, of 64 and 512 characters."
    ),
    "options": Field("honoured", fields.read_options, "Ollama's sampling options, as in chats."),
    "user": Field("carried", CARRIED, "For the records."),
    "safety_identifier": Field("carried", CARRIED, "For the records."),
    "service_tier": Field("carried", fields.read_carried_text, "For the records."),
    "prompt_cache_key": Field("carried", CARRIED, "For plugins that choose a warm host."),
    "prompt_cache_options": Field("carried", fields.read_carried, "For plugins that choose a warm host."),
    "prompt_cache_retention": Field("carried", fields.read_carried_text, "For the records."),
    "context_management": Field("refused", own.read_absent, "Nothing is compacted."),
    "moderation": Field("refused", own.read_absent, "There is no moderation service to ask."),
}
