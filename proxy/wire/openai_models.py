"""OpenAI's model objects, read and written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import orjson

from proxy.errors import UpstreamError
from proxy.models import ModelInfo
from proxy.types import JSON


def model(info: ModelInfo) -> JSON:
    return {"id": info.name, "object": "model", "created": info.created, "owned_by": info.owner}


def write_model(info: ModelInfo) -> bytes:
    return orjson.dumps(model(info))


def write_models(infos: Iterable[ModelInfo]) -> bytes:
    return orjson.dumps({"object": "list", "data": [model(info) for info in infos]})


def read_models(document: bytes) -> list[ModelInfo]:
    """The models in another server's list.  Raises UpstreamError."""
    try:
        return [_listed(one) for one in orjson.loads(document)["data"] or ()]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError, OverflowError, OSError):
        raise UpstreamError("The upstream sent a list of models that cannot be read.", "server") from None


def _listed(one: Mapping[str, JSON]) -> ModelInfo:
    """A listed model.  Servers do not report its capabilities, and only vLLM and llama.cpp its context length."""
    name, created = one["id"], int(one.get("created") or 0)
    context = one.get("max_model_len") or (one.get("meta") or {}).get("n_ctx_train")
    if not isinstance(name, str) or not name:
        raise TypeError
    told = {
        "name": name,
        "model": name,
        "modified_at": datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z"),
        "size": 0,
        "digest": "",
        "details": details(),
    }
    return ModelInfo(
        name,
        context=context if type(context) is int else None,
        created=created,
        owner=str(one.get("owned_by") or "library"),
        told=told,
    )


def details() -> dict[str, JSON]:
    """Ollama's details of a model whose weights are unknown."""
    unknown = {"parent_model": "", "format": "", "family": "", "parameter_size": "", "quantization_level": ""}
    return {**unknown, "families": []}


def shown(info: ModelInfo) -> bytes:
    """An answer of Ollama's /api/show for a model of another server.  Unknown capabilities are guessed by its name."""
    kinds = ["embedding"] if "embed" in info.name.lower() else ["completion", "tools"]
    described = {"modified_at": info.told.get("modified_at"), "details": details(), "model_info": {}}
    return orjson.dumps({**described, "capabilities": sorted(info.capabilities or kinds)})
