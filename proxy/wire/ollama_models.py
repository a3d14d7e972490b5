"""Ollama's descriptions of models -> ModelInfo.  Older servers omit capabilities and context length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache

import orjson

from proxy.errors import UpstreamError
from proxy.models import ModelInfo
from proxy.types import JSON
from proxy.wire.upstream_values import count, text

LIBRARY = "registry.ollama.ai/library/"


@lru_cache(4096)
def canonical(name: str) -> str:
    """A model's canonical name, the same for all its spellings, such as `Llama3.2` and `llama3.2:latest`."""
    name = name.lower().removeprefix(LIBRARY).removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


@lru_cache(4096)
def is_cloud(name: str) -> bool:
    """Whether Ollama would forward a call for this name to ollama.com."""
    tag = name.lower().rpartition("/")[2].partition(":")[2]
    return tag == "cloud" or tag.endswith("-cloud")


def is_remote(info: ModelInfo) -> bool:
    """Whether Ollama forwards calls for this model to another host; a copy of a cloud model may have any name."""
    return is_cloud(info.name) or bool(info.told.get("remote_host"))


def read_tags(document: bytes) -> list[ModelInfo]:
    """The models of /api/tags, in their order.  Raises UpstreamError."""
    try:
        return [_listed(one) for one in orjson.loads(document)["models"] or ()]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise UpstreamError("Ollama sent a list of models that cannot be read.", "server") from None


def _listed(one: dict[str, JSON]) -> ModelInfo:
    name, details = text(one["name"]), one.get("details") or {}
    capabilities = one.get("capabilities")
    return ModelInfo(
        name,
        text(one.get("digest") or ""),
        None if capabilities is None else frozenset(map(text, capabilities)),
        count(details.get("context_length")),
        _seconds(text(one.get("modified_at") or "")),
        name.rpartition("/")[0].rpartition("/")[2] or "library",
        one,
    )


def _seconds(stamp: str) -> int:
    try:
        told = datetime.fromisoformat(stamp)
        return max(0, int((told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp()))
    except ValueError:
        return 0


def with_show(info: ModelInfo, document: bytes) -> ModelInfo:
    """`info`, completed by /api/show.  Raises UpstreamError."""
    try:
        data = orjson.loads(document)
        facts = data.get("model_info") or {}
        context = count(facts.get(f"{facts.get('general.architecture', '')}.context_length"))
        listed = data.get("capabilities")
        capabilities = info.capabilities if listed is None else frozenset(map(text, listed))
    except (orjson.JSONDecodeError, AttributeError, TypeError):
        raise UpstreamError("Ollama described a model in a way that cannot be read.", "server") from None
    return replace(
        info,
        capabilities=capabilities,
        context=info.context or context,
    )


def read_version(document: bytes) -> str:
    """The version in /api/version.  Raises UpstreamError."""
    try:
        return str(orjson.loads(document)["version"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise UpstreamError("Ollama sent a version that cannot be read.", "server") from None


def loaded_entries(document: bytes) -> list[dict[str, JSON]]:
    """The entries of /api/ps.  Raises UpstreamError."""
    try:
        return [{**one} for one in orjson.loads(document)["models"] or ()]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise UpstreamError("Ollama sent a list of loaded models that cannot be read.", "server") from None


def read_loaded(document: bytes) -> dict[str, int | None]:
    """Context lengths of the models in /api/ps, by canonical name; None on older servers, which omit it.

    Raises UpstreamError.
    """
    try:
        models: Iterable[dict[str, JSON]] = orjson.loads(document)["models"] or ()
        return {canonical(one["name"]): count(one.get("context_length")) or None for one in models}
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise UpstreamError("Ollama sent a list of loaded models that cannot be read.", "server") from None
