"""What is stored of a chat completion besides its answer.  Source: OpenAI's API reference, "List Chat Completions"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from proxy.types import JSON
from proxy.wire.openai_answer import ChatStyle

REPEATED: Final = (
    "metadata", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "tools", "tool_choice",
    "response_format", "service_tier", "store",
)  # fmt: skip
"""Fields of the request that a stored completion repeats."""


def head_of(style: ChatStyle, body: Mapping[str, JSON]) -> dict[str, JSON]:
    """A chat completion before it has any content, as it is stored."""
    told = {name: body.get(name) for name in REPEATED}
    head = {"id": style.id, "object": "chat.completion", "created": style.created, "model": style.model}
    return {**head, **told, "metadata": body.get("metadata") or {}, "input_user": body.get("user")}
