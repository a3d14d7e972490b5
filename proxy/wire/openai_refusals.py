"""Errors of OpenAI-compatible servers -> ours.

Source: OpenAI's API reference, "Errors"; what vLLM, llama.cpp and FastAPI send.
"""

from __future__ import annotations

import re
from typing import Final

import orjson
from msgspec import Struct

from proxy.errors import BadCall, Denied, Looped, NotFound, ProxyError, TooLarge, TooOld, UpstreamError
from proxy.types import JSON

SIGNS: Final = (
    ("context_length_exceeded", "input", ("too large to process",)),
    ("context_length_exceeded", "messages", ("context_length_exceeded", "maximum context length",
                                             "exceeds the available context", "exceed_context_size",
                                             "exceeds the context", "maximum model length", "context window")),
    ("model_not_capable", "messages", ("image input is not supported", "not a multimodal model",
                                       "does not support image")),
    ("model_not_capable", "model", ("does not support embeddings", "does not support the embeddings")),
)  # fmt: skip
"""Client errors that are recognised by their text, whatever their status: code, field, texts."""
NO_MODEL: Final = re.compile(r"model\b.*\b(not exist|not found|not available)", re.IGNORECASE | re.DOTALL)
PASSING: Final = (408, 409, 499)
"""4xx statuses that are transient, so not the client's fault; OpenAI's SDKs retry them, too."""
MOST_TEXT: Final = 2000


class ErrorFields(Struct, frozen=True):
    """The contents of an error; "" and None for what it does not contain."""

    message: str = ""
    param: str | None = None
    code: str | None = None
    status: int | None = None
    signs: str = ""
    """All of its text in lower case, to be searched."""


def error_of(status: int, body: bytes, model: str) -> ProxyError:
    """The error for a server's error answer.  status: the server's, or 200 for an error in a stream."""
    told = error_fields(body)
    if status == 200:
        status = told.status or 500
    text = told.message or f"The upstream answered with status {status}."
    return refusal(status, text, told, model) or failure(status, text, told)


def error_fields(body: bytes) -> ErrorFields:
    """The error in a body: `{"error": {…}}`, the bare object, a list of them, or a text that is not HTML."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        words = body[:500].decode(errors="replace").strip()
        return ErrorFields() if words.startswith("<") else ErrorFields(words, signs=words.lower())
    if isinstance(data, list) and data:
        data = data[0]
    if isinstance(data, dict):
        data = data.get("error") or data
    if not isinstance(data, dict):
        return ErrorFields(str(data)[:MOST_TEXT], signs=str(data).lower())
    message, code, param = message_of(data), data.get("code"), data.get("param")
    return ErrorFields(
        message[:MOST_TEXT],
        param if isinstance(param, str) else None,
        code if isinstance(code, str) else None,
        code if type(code) is int and 400 <= code < 600 else None,
        f"{message} {code} {data.get('type')}".lower(),
    )


def message_of(data: dict[str, JSON]) -> str:
    """The error's message.  FastAPI's is a list, each entry with a location."""
    words = data.get("message") or data.get("detail") or data.get("msg") or ""
    if isinstance(words, list):
        return "; ".join(map(problem_of, words))
    return words if isinstance(words, str) else orjson.dumps(words).decode()


def problem_of(one: JSON) -> str:
    if not isinstance(one, dict):
        return str(one)
    place = one.get("loc")
    at = ".".join(map(str, place)) if isinstance(place, list) else "the body"
    return f"{at}: {one.get('msg')}"


def refusal(status: int, text: str, told: ErrorFields, model: str) -> ProxyError | None:
    """The error if a retry would not help: the request is wrong or not permitted; otherwise None."""
    if status in (401, 402, 403):
        return denied(status, text)
    if status == 429:
        return None
    if known := by_its_words(text, told):
        return known
    if told.code == "model_not_found" or (status == 404 and (told.param == "model" or NO_MODEL.search(text))):
        return NotFound(f"The model '{model}' does not exist: {text}", param="model", code="model_not_found")
    if status in (404, 405, 501):  # this server does not have the endpoint, so a retry would not help
        return TooOld(f"The upstream cannot do this: {text}")
    if status == 413:
        return TooLarge(text, param=told.param, code=told.code or "request_too_large")
    if 400 <= status < 500 and status not in PASSING:
        return BadCall(text, param=told.param, code=told.code)
    return None


def by_its_words(text: str, told: ErrorFields) -> BadCall | None:
    for code, param, words in SIGNS:
        if any(one in told.signs for one in words):
            return BadCall(text, param=told.param or param, code=code)
    return None


def denied(status: int, text: str) -> Denied:
    """The error for a refused request, without the text of a 401, in which servers often repeat the key."""
    if status == 401:
        text = "The upstream does not accept the key that this server has for it."
    else:
        text = f"The upstream refused the request: {text}"
    return Denied(text, code="upstream_denied")


def failure(status: int, text: str, told: ErrorFields) -> ProxyError:
    """The error if the server is at fault."""
    if "insufficient_quota" in told.signs:
        error = UpstreamError(text, "overloaded", code="insufficient_quota")
        error.again = False
        return error
    if status == Looped.status:
        return Looped(text)
    if "the model produced output that does not match" in told.signs:  # llama.cpp, for an invalid function call
        return UpstreamError(text, "invalid_answer")
    if status in (429, 503, 529):
        return UpstreamError(text, "overloaded", wait=1.0)
    return UpstreamError(text, "server")
