"""ModelInfo -> OpenAI's model objects."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from proxy.models import ModelInfo
from proxy.types import JSON


def model(info: ModelInfo) -> JSON:
    return {"id": info.name, "object": "model", "created": info.created, "owned_by": info.owner}


def write_model(info: ModelInfo) -> bytes:
    return orjson.dumps(model(info))


def write_models(infos: Iterable[ModelInfo]) -> bytes:
    return orjson.dumps({"object": "list", "data": [model(info) for info in infos]})
