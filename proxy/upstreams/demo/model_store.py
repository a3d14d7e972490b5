"""The models on the simulated disk, and their descriptions in answers."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .go_format import timestamp
from .models import Model
from .names import Name, parsed

MOST_STORED = 1_000
"""Maximum number of models, and of blobs, so that memory is bounded."""
SIZE = 4_661_224_676
BLOCKS, HEADS, HEADS_KV = 32, 32, 8
ORDER = ("completion", "vision", "tools", "insert", "thinking", "embedding")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model on disk, with what its Modelfile added."""

    model: Model
    modified: float
    parent: str = ""
    system: str = ""
    template: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> Name:
        name = parsed(self.model.name)
        if name is None:
            raise ValueError(f"{self.model.name!r} is not a valid name of a model")
        return name


class ModelStore:
    """Stored models by full name, regardless of case, and uploaded blobs."""

    def __init__(self, models: Iterable[Model]) -> None:
        self.blobs: dict[str, bytes] = {}
        """By digest, the first bytes of each blob."""
        self._stored: dict[str, StoredModel] = {}
        for model in models:
            self.add(StoredModel(model, time.time()))

    def add(self, stored: StoredModel) -> None:
        self._stored[stored.name.key] = stored
        if len(self._stored) > MOST_STORED:
            del self._stored[next(iter(self._stored))]

    def add_blob(self, digest: str, head: bytes) -> None:
        self.blobs[digest] = head
        if len(self.blobs) > MOST_STORED:
            del self.blobs[next(iter(self.blobs))]

    def find(self, name: Name | None) -> StoredModel | None:
        return self._stored.get(name.key) if name else None

    def remove(self, name: Name) -> StoredModel | None:
        return self._stored.pop(name.key, None)

    def all(self) -> list[StoredModel]:
        """Newest first."""
        return sorted(self._stored.values(), key=lambda stored: -stored.modified)


def capabilities(model: Model) -> list[str]:
    return sorted(model.capabilities, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def details(stored: StoredModel) -> dict[str, Any]:
    family = "bert" if stored.model.can("embedding") else "llama"
    return {
        "parent_model": stored.parent,
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": "8.0B",
        "quantization_level": "Q4_K_M",
    }


def tags_entry(stored: StoredModel, old: bool) -> dict[str, Any]:
    """An entry of /api/tags; old servers omit capabilities and lengths."""
    model, about = stored.model, details(stored)
    entry = {
        "name": stored.name.short,
        "model": stored.name.short,
        "modified_at": timestamp(stored.modified),
        "size": SIZE,
        "digest": model.digest,
        "details": about,
    }
    if model.remote:
        entry |= {"remote_model": model.name, "remote_host": model.remote}
    if old:
        return entry
    about |= {"context_length": model.context, "embedding_length": model.dimensions}
    return entry | {"capabilities": capabilities(model)}


def show_document(stored: StoredModel) -> dict[str, Any]:
    """The answer of /api/show."""
    model, about = stored.model, details(stored)
    family = about["family"]
    template = stored.template or ("{{ .Prompt }}" if model.mode == "rendered" else "")
    return {
        "license": "simulated",
        "modelfile": f"FROM {stored.name.short}\n",
        "parameters": "\n".join(f"{name:<30} {_value(value)}" for name, value in stored.parameters.items()),
        "template": template,
        "system": stored.system,
        "details": about,
        "model_info": {
            "general.architecture": family,
            "general.parameter_count": 8_030_261_312,
            f"{family}.context_length": model.context,
            f"{family}.embedding_length": model.dimensions,
            f"{family}.block_count": BLOCKS,
            f"{family}.attention.head_count": HEADS,
            f"{family}.attention.head_count_kv": HEADS_KV,
        },
        "capabilities": capabilities(model),
        "modified_at": timestamp(stored.modified),
    }


def _value(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
