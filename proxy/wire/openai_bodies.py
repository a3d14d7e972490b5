"""Chat, Complete and Embed -> request bodies for any OpenAI-compatible server.

Source: OpenAI's API reference; for the names of other options, vLLM's and llama.cpp's servers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from msgspec import Struct

from proxy.errors import BadCall
from proxy.types import JSON, Chat, Complete, Message
from proxy.wire.ollama_chat import must_fit, telling
from proxy.wire.openai_turns import messages_of, response_format, tool_of

PLAIN: Final = ("temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty")
"""Options that every server has, under the same name."""
EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "top_k": ("top_k",),
    "min_p": ("min_p",),
    "typical_p": ("typical_p",),
    "repeat_penalty": ("repeat_penalty", "repetition_penalty"),  # llama.cpp's name and vLLM's
    "repeat_last_n": ("repeat_last_n",),
    "num_keep": ("n_keep",),
}
"""Ollama's other options, and their names on servers that have them."""


class Plan(Struct, frozen=True):
    """The request to a server for one call, and what must be checked in its answer.

    notes: field -> `emulated`, `changed` or `ignored`, reported to the caller in a header.
    top: number of alternatives per token that the caller requested.
    must_call: the functions of which one has to be called.
    """

    path: str
    body: dict[str, JSON]
    notes: dict[str, str]
    top: int = 0
    one_call: bool = False
    must_call: Collection[str] = ()
    json: bool = False
    schema: Mapping[str, JSON] | None = None
    strict_tools: Mapping[str, Mapping[str, JSON]] = {}


def plan(model: str, ask: Chat | Complete, stream: bool, extras: Collection[str]) -> Plan:
    """Plan the request, with the options that the caller gave.  extras: the server's options beyond OpenAI's."""
    if isinstance(ask, Chat):
        return chat(model, ask, stream, extras)
    if ask.raw or ask.suffix:
        return completion(model, ask, stream, extras)
    return chat(model, turned(ask), stream, extras)


def turned(ask: Complete) -> Chat:
    """A prompt to be put into the model's template, as a chat of one turn."""
    user = Message("user", ask.prompts[0], ask.images)
    return Chat(
        messages=(Message("system", ask.system), user) if ask.system else (user,),
        format=ask.format,
        options=ask.options,
        think=ask.think,
        logprobs=ask.logprobs,
    )


def chat(model: str, ask: Chat, stream: bool, extras: Collection[str]) -> Plan:
    notes: dict[str, str] = {}
    body = begun(model, stream) | sampled(ask.options, "max_completion_tokens", extras, notes)
    messages, form = ask.messages, ask.format
    if form is not None:
        messages = telling(messages, must_fit(form.schema))
        body["response_format"] = response_format(form)
    body["messages"] = list(messages_of(messages, notes))
    body |= offered(ask, notes) | effort(ask.think, notes)
    if ask.logprobs is not None:
        body["logprobs"] = True
        if ask.logprobs:  # llama.cpp takes a 0 for no logprobs at all
            body["top_logprobs"] = ask.logprobs
    choice = ask.tool_choice
    forced = [tool.name for tool in ask.tools if not choice.names or tool.name in choice.names]
    return Plan(
        "/chat/completions",
        body,
        notes,
        top=ask.logprobs or 0,
        one_call=not ask.parallel_tool_calls,
        must_call=frozenset(forced) if choice.mode == "required" else (),
        json=form is not None,
        schema=form.schema if form is not None and form.strict else None,
        strict_tools={tool.name: tool.parameters for tool in ask.tools if tool.strict and tool.parameters},
    )


def completion(model: str, ask: Complete, stream: bool, extras: Collection[str]) -> Plan:
    """Plan the request for a raw prompt, which has no system message or images.  Raises BadCall for images."""
    if ask.images:
        message = "'images' are supported in chats only: a raw prompt cannot contain them."
        raise BadCall(message, param="images", code="unsupported_parameter")
    notes: dict[str, str] = {}
    body = begun(model, stream) | sampled(ask.options, "max_tokens", extras, notes)
    body["prompt"] = ask.prompts[0]
    if ask.suffix:
        body["suffix"] = ask.suffix
    if ask.system:
        notes["system"] = "ignored"
    if ask.think:
        notes["reasoning_effort"] = "ignored"
    if ask.logprobs is not None:
        body["logprobs"] = ask.logprobs or 1  # llama.cpp takes a 0 for no logprobs at all
    form = ask.format
    if form is not None:
        body["prompt"] += f"\n\n{must_fit(form.schema)}"
        body["response_format"] = response_format(form)
    schema = form.schema if form is not None and form.strict else None
    return Plan("/completions", body, notes, top=ask.logprobs or 0, json=form is not None, schema=schema)


def embed_body(model: str, inputs: tuple[str, ...], dimensions: int | None) -> dict[str, JSON]:
    """The body of /embeddings.  It asks for floats, because some servers support nothing else."""
    body: dict[str, JSON] = {"model": model, "input": inputs, "encoding_format": "float"}
    return body if dimensions is None else {**body, "dimensions": dimensions}


def begun(model: str, stream: bool) -> dict[str, JSON]:
    body: dict[str, JSON] = {"model": model, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    return body


def sampled(options: Mapping[str, JSON], most: str, extras: Collection[str], notes: dict[str, str]) -> dict[str, JSON]:
    """The options, with their names on the server.  most: the endpoint's name for the maximum of tokens."""
    body: dict[str, JSON] = {}
    for name, given in options.items():
        if name in PLAIN:
            body[name] = given
        elif name == "max_tokens":
            if given is not None:
                body[most] = given
            elif most == name:  # without it a completion has the server's default, often 16
                notes["options.num_predict"] = "ignored"
        elif name in extras:
            body |= dict.fromkeys(EXTRAS[name], given)
        else:
            notes[f"options.{name}"] = "ignored"
    return body


def effort(think: bool | str | None, notes: dict[str, str]) -> dict[str, JSON]:
    """The reasoning effort.  True leaves it to the model, by omitting the field."""
    if think is None or think is True:
        return {}
    if think == "max":
        notes["reasoning_effort"] = "changed"
        return {"reasoning_effort": "high"}
    return {"reasoning_effort": think or "none"}


def offered(ask: Chat, notes: dict[str, str]) -> dict[str, JSON]:
    """The tools, and how they may be used.

    If a function is named, only this one is sent, with `required`, because llama.cpp treats a name as `auto`.  If
    several are allowed, only these are sent, because only OpenAI supports such a choice.
    """
    choice = ask.tool_choice
    if not ask.tools:
        return {}
    shown = tuple(tool for tool in ask.tools if not choice.names or tool.name in choice.names)
    body: dict[str, JSON] = {"tools": [tool_of(tool) for tool in shown]}
    if choice.mode != "auto":
        body["tool_choice"] = choice.mode
    if choice.names and not (choice.mode == "required" and len(choice.names) == 1):
        notes["tool_choice"] = "emulated"
    if not ask.parallel_tool_calls:
        body["parallel_tool_calls"] = False
    return body
