"""Ollama's lists of models, and the same in OpenAI's form."""

from __future__ import annotations

import orjson
import pytest
from openai.types import Model

from proxy.errors import UpstreamError
from proxy.models import ModelInfo
from proxy.types import JSON
from proxy.wire.ollama_models import canonical, is_cloud, loaded_entries, read_loaded, read_tags, with_show
from proxy.wire.openai_models import write_model, write_models

TAG: JSON = {
    "name": "me/Tuned:v1",
    "digest": "abc",
    "modified_at": "2026-08-21T10:11:12.123456789Z",
    "details": {"context_length": 4096},
    "capabilities": ["completion", "tools"],
}


def tags(*models: JSON) -> list[ModelInfo]:
    return read_tags(orjson.dumps({"models": models}))


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("Llama3.2", "llama3.2:latest"),
        ("llama3.2:LATEST", "llama3.2:latest"),
        ("library/llama3.2", "llama3.2:latest"),
        ("registry.ollama.ai/library/llama3.2:1b", "llama3.2:1b"),
        ("me/tuned", "me/tuned:latest"),
        ("localhost:5000/me/tuned", "localhost:5000/me/tuned:latest"),
    ],
)
def test_two_spellings_of_one_model_are_one(name: str, same: str) -> None:
    assert canonical(name) == same == canonical(same)


@pytest.mark.parametrize(
    ("name", "cloud"),
    [
        ("gpt-oss:cloud", True),
        ("gpt-oss:120b-CLOUD", True),
        ("me/gpt-oss:120b-cloud", True),
        ("gpt-oss", False),
        ("my-cloud", False),
        ("cloud:7b", False),
        ("cloud/x", False),
    ],
)
def test_cloud_names_are_known(name: str, cloud: bool) -> None:
    assert is_cloud(name) is cloud


def test_a_listed_model() -> None:
    tools = frozenset({"completion", "tools"})
    assert tags(TAG) == [ModelInfo("me/Tuned:v1", "abc", tools, 4096, 1787307072, "me")]


def test_an_older_servers_list_leaves_missing_details_unknown() -> None:
    assert tags({"name": "old:latest"}) == [ModelInfo("old:latest")]
    assert tags() == [] and read_tags(b'{"models":null}') == []


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("1970-01-01T00:01:00Z", 60),
        ("1970-01-01T02:01:00.123456789+02:00", 60),
        ("1969-12-31T17:01:00.5-07:00", 60),
        ("1970-01-01T00:01:00", 60),
        ("0001-01-01T00:00:00Z", 0),
        ("", 0),
        ("yesterday", 0),
    ],
)
def test_the_time_is_read_with_its_zone(stamp: str, seconds: int) -> None:
    assert tags({"name": "m", "modified_at": stamp})[0].created == seconds


SHOWN = {
    "capabilities": ["embedding"],
    "model_info": {"general.architecture": "llama", "llama.context_length": 512},
}


def test_details_missing_in_the_list_are_filled_in() -> None:
    found = with_show(ModelInfo("m"), orjson.dumps(SHOWN))
    assert (found.capabilities, found.context) == (frozenset({"embedding"}), 512)
    assert with_show(tags(TAG)[0], orjson.dumps(SHOWN)).context == 4096
    assert with_show(tags(TAG)[0], b"{}") == tags(TAG)[0]


def test_loaded_models_have_their_canonical_names() -> None:
    told = b'{"models":[{"name":"Demo","context_length":4096},{"name":"me/x:1"}]}'
    assert read_loaded(told) == {"demo:latest": 4096, "me/x:1": None}
    assert read_loaded(b'{"models":null}') == {}


@pytest.mark.parametrize(
    "document", [b"", b"{", b"null", b"[]", b"{}", b'{"models":5}', b'{"models":[{}]}', b'{"models":[{"name":5}]}']
)
def test_invalid_lists_are_an_upstream_error(document: bytes) -> None:
    for read in (read_tags, read_loaded):
        with pytest.raises(UpstreamError, match="cannot be read"):
            read(document)


@pytest.mark.parametrize("wrong", [{"digest": [1]}, {"capabilities": [[]]}, {"modified_at": 5}, {"name": None}])
def test_an_invalid_entry_is_an_upstream_error(wrong: JSON) -> None:
    with pytest.raises(UpstreamError, match="cannot be read"):
        tags({**TAG, **wrong})


def test_an_invalid_context_length_is_unknown() -> None:
    assert tags({**TAG, "details": {"context_length": "long"}})[0].context is None
    assert with_show(ModelInfo("m"), orjson.dumps({"model_info": {".context_length": []}})).context is None
    assert read_loaded(b'{"models":[{"name":"m","context_length":"4096"}]}') == {"m:latest": None}


@pytest.mark.parametrize("document", [b"null", b'{"models":["demo"]}', b'{"models":[null]}'])
def test_an_invalid_list_of_loaded_models_is_an_upstream_error(document: bytes) -> None:
    with pytest.raises(UpstreamError, match="cannot be read"):
        loaded_entries(document)


@pytest.mark.parametrize("document", [b"{", b"[]", b"null", b'{"model_info":[1]}', b'{"capabilities":[5]}'])
def test_an_invalid_description_is_an_upstream_error(document: bytes) -> None:
    with pytest.raises(UpstreamError, match="cannot be read"):
        with_show(ModelInfo("m"), document)


def test_models_are_listed_in_openais_form() -> None:
    info = ModelInfo("me/x:1", created=60, owner="me")
    found = Model.model_validate(orjson.loads(write_model(info)), strict=True)
    assert (found.id, found.created, found.owned_by, found.model_extra) == ("me/x:1", 60, "me", {})
    assert orjson.loads(write_models([info])) == {"object": "list", "data": [orjson.loads(write_model(info))]}
    assert orjson.loads(write_models([]))["data"] == []
