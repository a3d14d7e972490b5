"""Ollama's errors -> ours, by their text, because many different ones have status 500."""

from __future__ import annotations

import re
from typing import Final

import orjson

from proxy.errors import BadCall, Cause, Denied, Looped, NotFound, ProxyError, TooLarge, TooOld, UpstreamError
from proxy.types import JSON

OVERFLOW: Final = ("exceed_context_size", "exceeds the available context size", "exceeds the context length",
                   "prompt is longer than the context length")  # fmt: skip
MEMORY: Final = ("requires more system memory", "out of memory", "cudamalloc failed", "unable to allocate")
LOADING: Final = ("llama-server process has terminated", "timed out waiting for llama-server",
                  "error starting llama-server", "llama-server binary not found",
                  "may be incompatible with your version",
                  "llama runner process has terminated", "loading model")  # fmt: skip
# Client errors that Ollama answers with 500.
CALLERS: Final = ("invalid format:", "does not support multimodal", "image input is not supported", 'option "',
                  "invalid tool call arguments in")  # fmt: skip
PASSING: Final = (408, 409)
"""4xx statuses that are transient, so not the client's fault; OpenAI's SDKs retry them, too."""
NO_MODEL: Final = re.compile(r"model ['\"].*['\"] not found")


def error_of(status: int, body: bytes, model: str) -> ProxyError:
    """The error for an answer with an error status."""
    return of_text(status, text_of(body) or f"Ollama answered with status {status}.", model)


def text_of(body: bytes) -> str:
    """The message in `{"error": "…"}`, or the start of any other text; "" for a gateway's HTML page."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        words = body[:500].decode(errors="replace").strip()
        return "" if words.startswith("<") else words
    return unwrapped(parsed)


def unwrapped(value: JSON) -> str:
    """The innermost message: llama-server's JSON error arrives as a string inside Ollama's."""
    for _ in range(4):
        if isinstance(value, dict):
            value = value.get("error", value.get("message", ""))
        elif isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError:
                break
        else:
            break
    return str(value) if isinstance(value, str) else orjson.dumps(value).decode()


def of_text(status: int, text: str, model: str) -> ProxyError:
    """The error that a text means.  status: Ollama's, or 200 for an error line inside an answer."""
    lower = text.lower()
    if status == 404 and NO_MODEL.search(text):
        return NotFound(f"The model '{model}' does not exist: {text}", param="model", code="model_not_found")
    if any(sign in lower for sign in OVERFLOW):
        param = "input" if "input length" in lower else "messages"  # only errors of embeddings mention inputs
        return BadCall(text, param=param, code="context_length_exceeded")
    if status == 400 or any(sign in lower for sign in CALLERS):
        capable = None if "does not support" not in lower else "model_not_capable"
        return BadCall(text, param=_param(lower), code=capable)
    if "does not support embeddings" in lower:
        return BadCall(text, param="model", code="model_not_capable")
    return of_status(status, text)


def of_status(status: int, text: str) -> ProxyError:
    """The error by the status alone, if the text is not a known one."""
    if status in (404, 405):  # this Ollama is too old for the endpoint, so a retry would not help
        return TooOld(f"Ollama has no such endpoint: {text}")
    if status in (401, 402, 403):
        return Denied(f"Ollama refused the request: {text}", code="upstream_denied")
    if status == Looped.status:
        return Looped(text)
    if status in (499, 503, 429):
        return UpstreamError(text, "overloaded", wait=1.0)
    if status == 413:
        return TooLarge(text, code="request_too_large")
    # Ollama itself sends few of these, but a gateway in front of it may send any.
    ours = 400 <= status < 500 and status not in PASSING
    return BadCall(text) if ours else UpstreamError(text, _cause(text.lower()))


def _cause(lower: str) -> Cause:
    if any(sign in lower for sign in MEMORY):
        return "memory"
    return "load" if any(sign in lower for sign in LOADING) else "server"


def _param(lower: str) -> str | None:
    for sign, param in (
        ("support insert", "suffix"),
        ("support tools", "tools"), ("support thinking", "reasoning_effort"), ("think value", "reasoning_effort"),
        ("image", "messages"), ("multimodal", "messages"), ("support chat", "model"), ("support generate", "model"),
        ("logprobs", "logprobs"),
        ("invalid format", "response_format"), ("unable to generate parser", "response_format"),
        ("input type", "input"), ("embedding", "input"), ("invalid model", "model"), ("tool call arg", "messages"),
    ):  # fmt: skip
        if sign in lower:
            return param
    return None
