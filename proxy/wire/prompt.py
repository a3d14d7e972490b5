"""Requests with one prompt and the other fields of OpenAI's chat API, answered in the form of Ollama's `generate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from proxy.announcements import KEPT
from proxy.errors import BadCall, ProxyError
from proxy.types import JSON, Usage
from proxy.wire import read
from proxy.wire.ollama_out import NativeStyle
from proxy.wire.openai_errors import error_body

OTHERS: Final = ("messages", "n", "store", "stream_options")
"""Fields of the chat API that are refused here."""
SPELLED: Final = {"messages": "prompt"}


def spelled(param: str | None) -> str | None:
    """This request's name for a field of the chat API."""
    return SPELLED.get(param or "", param)


def chat_of(body: JSON) -> dict[str, JSON]:
    """The chat request that a body with `prompt` and `system` means.  Raises BadCall, which names the field."""
    given = read.mapping(body, "the body")
    for name in OTHERS:
        if given.get(name) is not None:
            raise BadCall(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    messages = [{"role": "user", "content": read.filled(read.needed(given, "prompt", "prompt"), "prompt")}]
    if given.get("system") is not None:
        messages.insert(0, {"role": "system", "content": read.text(given["system"], "system")})
    return {**{name: given[name] for name in given if name not in ("prompt", "system")}, "messages": messages}


def nothing() -> Mapping[str, str]:
    return {}


@dataclass(slots=True)
class Style(NativeStyle):
    """How to write the answer to one call.  told: gives the facts of the answer, once it has begun."""

    kind: Literal["chat", "generate"] = "generate"
    told: Callable[[], Mapping[str, str]] = nothing

    def failed(self, error: ProxyError) -> bytes:
        return error_body(error) + b"\n"

    def last(self, said: Mapping[str, JSON], reason: str, usage: Usage | None, more: Mapping[str, JSON]) -> bytes:
        facts = self.told()
        cached = {"cached": facts.get("cache") in KEPT, "cache_key": facts.get("cache-key")}
        return NativeStyle.last(self, said, reason, usage, {**more, **cached})
