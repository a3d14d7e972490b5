"""The models that the simulator pretends to have."""

import hashlib
from dataclasses import dataclass
from typing import Literal

Mode = Literal["native", "rendered"]


@dataclass(frozen=True, slots=True)
class Model:
    """One simulated model."""

    name: str
    capabilities: frozenset[str]
    """Of completion, tools, vision, thinking, embedding, insert."""
    context: int = 8192
    """Trained context, in tokens."""
    mode: Mode = "native"
    """Who applies the chat template and parses answers: the model's own server ("native"), or Ollama ("rendered")."""
    dimensions: int = 384
    """Length of its embeddings."""
    digest: str = ""
    """64 hex digits; derived from the name if not given."""
    remote: str = ""
    """URL of the server to which calls are forwarded; "" for a local model."""

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", hashlib.sha256(self.name.encode()).hexdigest())

    def can(self, capability: str) -> bool:
        return capability in self.capabilities


CATALOGUE: tuple[Model, ...] = (
    Model("demo:latest", frozenset({"completion", "tools", "insert"})),
    Model("demo-rendered:latest", frozenset({"completion", "tools"}), mode="rendered"),
    Model("demo-thinking:latest", frozenset({"completion", "tools", "thinking"})),
    Model("demo-vision:latest", frozenset({"completion", "tools", "vision"})),
    Model("demo-embed:latest", frozenset({"embedding"}), context=2048),
)
