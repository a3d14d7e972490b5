"""The meaning of errors of OpenAI-compatible servers."""

from __future__ import annotations

import orjson
import pytest

from proxy.errors import BadCall, Denied, Looped, NotFound, ProxyError, TooLarge, TooOld, UpstreamError
from proxy.types import JSON
from proxy.wire.openai_refusals import error_of


def error_from(status: int, error: JSON) -> ProxyError:
    return error_of(status, error if isinstance(error, bytes) else orjson.dumps(error), "m")


def openai(message: str, code: JSON = None, param: str | None = None, type: str = "invalid_request_error") -> JSON:
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


@pytest.mark.parametrize(
    ("status", "error", "kind", "code", "param"),
    [
        (400, openai("Bad 'seed'.", "invalid_value", "seed"), BadCall, "invalid_value", "seed"),
        (400, openai("no", 400), BadCall, None, None),
        (422, {"detail": [{"loc": ["body", "top_p"], "msg": "too big"}]}, BadCall, None, None),
        (400, {"object": "error", "message": "no", "type": "BadRequestError", "code": 400}, BadCall, None, None),
        (400, [openai("no", 400)], BadCall, None, None),
        (413, b"<html>413</html>", TooLarge, "request_too_large", None),
        (415, openai("what is this"), BadCall, None, None),
        (431, b"", BadCall, None, None),
        (400, openai("This model's maximum context length is 8.", 400), BadCall, "context_length_exceeded", "messages"),
        (400, openai("x", "context_length_exceeded", "input"), BadCall, "context_length_exceeded", "input"),
        (400, {"error": {"code": 400, "message": "request (9 tokens) exceeds the available context size (8 tokens)",
                         "type": "exceed_context_size_error"}}, BadCall, "context_length_exceeded", "messages"),
        (500, openai("input (9 tokens) is too large to process. increase the physical batch size", 500),
         BadCall, "context_length_exceeded", "input"),
        (500, openai("image input is not supported - hint", 500), BadCall, "model_not_capable", "messages"),
        (501, openai("This server does not support embeddings. Start it with `--embeddings`", 501),
         BadCall, "model_not_capable", "model"),
        (401, openai("Incorrect API key provided: sk-***xyz", "invalid_api_key"), Denied, "upstream_denied", None),
        (403, openai("not in your country"), Denied, "upstream_denied", None),
        (402, {"error": {"message": "Insufficient Balance"}}, Denied, "upstream_denied", None),
        (404, openai("The model `x` does not exist.", 404, "model"), NotFound, "model_not_found", "model"),
        (404, openai("The model 'x' does not exist or you do not have access to it.", "model_not_found"), NotFound,
         "model_not_found", "model"),
        (404, {"detail": "Not Found"}, TooOld, "upstream_too_old", None),
        (405, b"", TooOld, "upstream_too_old", None),
        (508, openai("here before", "loop_detected"), Looped, "loop_detected", None),
        (408, openai("slow"), UpstreamError, "upstream_server", None),
        (409, openai("conflict"), UpstreamError, "upstream_server", None),
        (429, openai("Rate limit reached"), UpstreamError, "upstream_overloaded", None),
        (429, openai("The context window is busy"), UpstreamError, "upstream_overloaded", None),
        (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, UpstreamError,
         "upstream_overloaded", None),
        (500, openai("The model produced output that does not match the expected peg-native format", 500),
         UpstreamError, "upstream_invalid_answer", None),
        (529, b"", UpstreamError, "upstream_overloaded", None),
        (500, {"error": "boom"}, UpstreamError, "upstream_server", None),
        (502, b"<html><h1>Bad gateway</h1>", UpstreamError, "upstream_server", None),
        (301, b"", UpstreamError, "upstream_server", None),
        (500, {"message": "boom"}, UpstreamError, "upstream_server", None),
        (500, {"error": {"message": None}}, UpstreamError, "upstream_server", None),
        (500, b"\xff\xfe", UpstreamError, "upstream_server", None),
        (500, b"[]", UpstreamError, "upstream_server", None),
        (500, b"5", UpstreamError, "upstream_server", None),
        (400, {"detail": ["words"]}, BadCall, None, None),
    ],
)  # fmt: skip
def test_each_error_has_its_kind(
    status: int, error: JSON, kind: type[ProxyError], code: str | None, param: str
) -> None:
    found = error_from(status, error)
    assert (type(found), found.code, found.param) == (kind, code, param)
    assert str(found)


def test_html_is_not_shown() -> None:
    assert str(error_from(502, b"<html>secrets of a gateway")) == "The upstream answered with status 502."


def test_a_servers_message_about_a_key_is_not_passed_on() -> None:
    assert "sk-" not in str(error_from(401, openai("Incorrect API key provided: sk-***xyz")))


def test_an_overload_can_be_retried_and_insufficient_quota_cannot() -> None:
    assert error_from(429, openai("Rate limit reached")).wait == 1.0
    empty = error_from(429, openai("You exceeded your current quota", "insufficient_quota", type="insufficient_quota"))
    assert (empty.status, empty.code, empty.again) == (503, "insufficient_quota", False)


def test_an_error_in_a_stream_has_the_status_that_it_contains() -> None:
    assert isinstance(error_from(200, openai("no", 400)), BadCall)
    assert isinstance(error_from(200, openai("no")), UpstreamError)
