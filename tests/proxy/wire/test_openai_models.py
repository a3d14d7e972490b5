"""OpenAI's lists of models, read and written."""

from __future__ import annotations

import orjson
import pytest
from ollama import ListResponse, ShowResponse

from proxy.errors import UpstreamError
from proxy.models import ModelInfo
from proxy.types import JSON
from proxy.wire.openai_models import read_models, shown, write_models


def listed(**more: JSON) -> bytes:
    return orjson.dumps({"data": [{"id": "org/m", "created": 5, "owned_by": "org", **more}]})


@pytest.mark.parametrize(
    ("more", "context"),
    [({}, None), ({"max_model_len": 9}, 9), ({"meta": {"n_ctx_train": 8}}, 8), ({"meta": None, "created": None}, None)],
)
def test_a_list_is_read_with_all_its_details(more: JSON, context: int | None) -> None:
    [info] = read_models(listed(**more))
    assert (info.name, info.owner, info.digest, info.capabilities, info.context) == ("org/m", "org", "", None, context)


def test_a_written_list_can_be_read() -> None:
    given = [ModelInfo("a", created=5, owner="x"), ModelInfo("b:c")]
    assert read_models(write_models(given)) == given


def test_ollamas_client_can_read_the_list_of_such_models() -> None:
    [info] = read_models(listed())
    [entry] = ListResponse(models=[dict(info.told)]).models  # type: ignore[list-item]  # as its own JSON is read
    assert entry.model == "org/m" and entry.modified_at and entry.modified_at.year == 1970 and entry.details


@pytest.mark.parametrize(("name", "kinds"), [("m", ["completion", "tools"]), ("Nomic-Embed", ["embedding"])])
def test_ollamas_client_can_read_the_description_of_such_a_model(name: str, kinds: list[str]) -> None:
    assert ShowResponse(**orjson.loads(shown(ModelInfo(name)))).capabilities == kinds


def test_an_empty_list_is_valid() -> None:
    assert read_models(b'{"data":null}') == []


@pytest.mark.parametrize(
    "document",
    [b"{", b"[]", b"{}", b"5", b'{"data":[5]}', b'{"data":[{}]}', b'{"data":[{"id":5}]}', b'{"data":[{"id":""}]}',
     b'{"data":[{"id":"a","created":"x"}]}', b'{"data":[{"id":"a","created":1e30}]}',
     b'{"data":[{"id":"a","meta":5}]}'],
)  # fmt: skip
def test_an_invalid_list_is_an_upstream_error(document: bytes) -> None:
    with pytest.raises(UpstreamError):
        read_models(document)
