"""Ollama's error texts become errors that a client can act on."""

from __future__ import annotations

import orjson
import pytest

from proxy.errors import BadCall, Denied, NotFound, ProxyError, TooLarge, TooOld, UpstreamError
from proxy.types import JSON
from proxy.wire.ollama_errors import error_of, of_text, text_of
from proxy.wire.openai_errors import error_body

OVERFLOW = orjson.dumps(
    {
        "error": {
            "code": 400,
            "message": "request (818 tokens) exceeds the available context size (256 tokens), try increasing it",
            "type": "exceed_context_size_error",
            "n_ctx": 256,
        }
    }
).decode()


def error(status: int, text: str) -> ProxyError:
    return error_of(status, orjson.dumps({"error": text}), "mine")


@pytest.mark.parametrize(
    ("status", "text", "kind", "param", "code"),
    [
        (404, "model 'x' not found", NotFound, "model", "model_not_found"),
        (404, 'model "x" not found, try pulling it first', NotFound, "model", "model_not_found"),
        (400, OVERFLOW, BadCall, "messages", "context_length_exceeded"),
        (500, OVERFLOW, BadCall, "messages", "context_length_exceeded"),
        (400, "the input length exceeds the context length", BadCall, "input", "context_length_exceeded"),
        (
            400,
            "the prompt is longer than the context length currently available to the model",
            BadCall,
            "messages",
            "context_length_exceeded",
        ),
        (400, "registry.ollama.ai/library/x:latest does not support tools", BadCall, "tools", "model_not_capable"),
        (400, '"x" does not support thinking', BadCall, "reasoning_effort", "model_not_capable"),
        (400, '"x" does not support chat', BadCall, "model", "model_not_capable"),
        (400, '"x" does not support generate', BadCall, "model", "model_not_capable"),
        (400, "logprobs is not supported with tools + stream", BadCall, "logprobs", None),
        (400, "invalid input type", BadCall, "input", None),
        (400, "Unable to generate parser for this template", BadCall, "response_format", None),
        (400, "something else", BadCall, None, None),
        (500, 'option "temperature" must be of type float32', BadCall, None, None),
        (500, 'invalid format: "x"; expected "json" or a valid JSON Schema object', BadCall, "response_format", None),
        (
            500,
            '{"error":{"code":500,"message":"image input is not supported - hint: mmproj"}}',
            BadCall,
            "messages",
            None,
        ),
        (
            500,
            "Multimodal data provided, but model does not support multimodal requests.",
            BadCall,
            "messages",
            "model_not_capable",
        ),
        (403, "ollama cloud is disabled: remote model is unavailable", Denied, None, "upstream_denied"),
        (503, "server busy, please try again.  maximum pending requests exceeded", UpstreamError, None,
         "upstream_overloaded"),
        (499, "request canceled", UpstreamError, None, "upstream_overloaded"),
        (500, "llama-server process has terminated: exit status 1", UpstreamError, None, "upstream_load"),
        (500, "timed out waiting for llama-server to start - ", UpstreamError, None, "upstream_load"),
        (500, "this model may be incompatible with your version of Ollama", UpstreamError, None, "upstream_load"),
        (500, "model requires more system memory (9 GiB) than is available (3 GiB)", UpstreamError, None,
         "upstream_memory"),
        (500, "llama-server process has terminated: cudaMalloc failed: out of memory", UpstreamError, None,
         "upstream_memory"),
        (500, "model runner has unexpectedly stopped", UpstreamError, None, "upstream_server"),
        (200, "an error was encountered while running the model: unexpected EOF", UpstreamError, None,
         "upstream_server"),
        (404, "404 page not found", TooOld, None, "upstream_too_old"),
        (501, "This server does not support embeddings.", BadCall, "model", "model_not_capable"),
        (401, "unauthorized", Denied, None, "upstream_denied"),
        (402, "payment required", Denied, None, "upstream_denied"),
        (405, "method not allowed", TooOld, None, "upstream_too_old"),
        (413, "<html><h1>413 Request Entity Too Large</h1>", TooLarge, None, "request_too_large"),
        (415, "what is this", BadCall, None, None),
        (422, "cannot be read", BadCall, None, None),
        (408, "too slow", UpstreamError, None, "upstream_server"),
    ],
)  # fmt: skip
def test_each_error_text_of_ollama_has_its_kind(
    status: int, text: str, kind: type[ProxyError], param: str | None, code: str | None
) -> None:
    found = error(status, text)
    assert (type(found), found.param, found.code) == (kind, param, code)
    assert str(found)


def test_the_error_for_an_unknown_model_has_the_clients_name_for_it() -> None:
    assert "'mine'" in str(error(404, "model 'registry/x:latest' not found"))


def test_an_overload_has_retry_after() -> None:
    found = error(503, "server busy")
    assert (found.status, found.wait) == (503, 1.0)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":"plain"}', "plain"),
        (orjson.dumps({"error": OVERFLOW}), orjson.loads(OVERFLOW)["error"]["message"]),
        (b'{"error":{"message":"an object"}}', "an object"),
        (b'{"message":"ours"}', "ours"),
        (b'{"error":"{not json"}', "{not json"),
        (b'{"error":["a",1]}', '["a",1]'),
        (b"502 Bad Gateway\n", "502 Bad Gateway"),
        (b"<html><h1>502 Bad Gateway</h1>", ""),
        (b"\xff" * 600, "\ufffd" * 500),
        (b"", ""),
    ],
)
def test_the_message_is_found_in_any_error_body(body: bytes, text: str) -> None:
    assert text_of(body) == text


@pytest.mark.parametrize("body", [b"", b'{"error":""}', b"{}"])
def test_an_empty_error_shows_its_status(body: bytes) -> None:
    assert str(error_of(500, body, "m")) == "Ollama answered with status 500."


def test_an_error_line_within_an_answer_is_read_the_same_way() -> None:
    assert of_text(200, "exceeds the available context size", "m").code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            BadCall('not "that"', param="n", code="c"),
            {"message": 'not "that"', "type": "invalid_request_error", "param": "n", "code": "c"},
        ),
        (
            UpstreamError("gone", "cut"),
            {"message": "gone", "type": "server_error", "param": None, "code": "upstream_cut"},
        ),
    ],
)
def test_errors_are_written_in_openais_shape(found: ProxyError, told: JSON) -> None:
    assert orjson.loads(error_body(found)) == {"error": told}
