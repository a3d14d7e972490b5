"""A conversation as read from the database, and its errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from proxy.errors import BadCall, NotFound, ProxyError
from proxy.types import JSON

PREFIX: Final = "conv_"
FIELD: Final = "conversation"
HEADER: Final = "x-gemmapy-conversation"
"""The body field (`FIELD`) or the header by which a call names its conversation."""
SANE: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
TOO_LONG: Final = "context_length_exceeded"
"""The error code of a prompt that is too long for the model."""
RESERVED: Final = ("search", "statistics")
"""Paths of other endpoints, which cannot be ids."""


def checked_id(given: str) -> str:
    """The id itself.  Raises ValueError if it is not valid."""
    if not SANE.fullmatch(given):
        raise ValueError("expected up to 128 letters, digits and `_.:-`")
    if given in RESERVED:
        raise ValueError(f"`{given}` is the name of an endpoint")
    return given


@dataclass(frozen=True, slots=True)
class Conversation:
    """The columns of a conversation; see `tables`."""

    number: int
    owner: str
    id: str
    title: str
    titled: str
    model: str
    system: str
    metadata: Mapping[str, JSON]
    parent: str
    created: int
    updated: int
    messages: int
    first: int
    prompt_tokens: int
    completion_tokens: int
    read_letters: int
    read_tokens: int

    def as_json(self) -> dict[str, JSON]:
        return {
            "id": self.id,
            "object": "conversation",
            "title": self.title,
            "model": self.model or None,
            "system_prompt": self.system or None,
            "metadata": dict(self.metadata),
            "message_count": self.messages,
            "usage": {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens},
            "forked_from": self.parent or None,
            "created_at": self.created // 10**6,
            "updated_at": self.updated // 10**6,
        }


def conversation_of(row: Mapping[str, Any]) -> Conversation:
    columns = {name: row[name] for name in Conversation.__slots__}
    return Conversation(**columns | {"metadata": orjson.loads(row["metadata"] or "{}")})


class Locked(ProxyError):
    """Another call of this conversation is still in progress."""

    status, kind = 409, "invalid_request_error"

    def __init__(self, id: str, wait: float) -> None:
        message = f"Another call of the conversation '{id}' is being answered."
        super().__init__(message, param="conversation", code="conversation_locked", wait=wait)


class Exists(ProxyError):
    """The id chosen for a new conversation is already in use."""

    status, kind = 409, "invalid_request_error"

    def __init__(self, id: str) -> None:
        super().__init__(f"You have a conversation '{id}' already.", param="id", code="conversation_exists")


def unknown(id: str, param: str = "conversation") -> NotFound:
    return NotFound(f"No conversation '{id[:200]}' of yours was found.", param=param, code="conversation_not_found")


def full(message: str) -> BadCall:
    return BadCall(message, param="conversation", code="conversation_full")
