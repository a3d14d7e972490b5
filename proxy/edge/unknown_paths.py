"""The error for a path without a route: in the right dialect, with what the client probably meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Final

from proxy.config import Config
from proxy.errors import NotFound, ProxyError
from proxy.types import Route
from proxy.wire import ollama_out, openai_errors

OLLAMAS: Final = re.compile(
    r"/api/(chat|generate|embed|embeddings|tags|show|ps|version|create|pull|push|copy|delete|blobs/.*)"
)
"""Paths of Ollama's API; others under `/api` are our own."""
CHAINS: Final[Mapping[str, str]] = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/api/chat": "chat",
    "/api/generate": "completions",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
}
"""The chain that must be configured for a path to exist."""
ALIKE: Final = 0.85
"""Similarity from which on another path is suggested; 1 is equal."""
LONGEST: Final = 60
"""Maximum length of a path that is compared with others, because that takes quadratic time."""
CHAT: Final = "use POST /v1/chat/completions"
INSTEAD: Final[Mapping[str, str]] = {
    "responses": "what is kept of POST /v1/responses is served where the plugin `stored` is used",
    "conversations": f"the plugin `conversations` opens it; or {CHAT}",
    "assistants": CHAT,
    "threads": CHAT,
    "realtime": f"{CHAT} with 'stream': true",
    "batches": f"{CHAT} once a question",
    "moderations": f"{CHAT} with a model that judges",
    "files": "the plugin `files` must be in the configuration",
    "uploads": "POST /v1/files takes a file at once",
    "vector_stores": "the plugin `documents` must be in the configuration",
    "images": "models here see images, in POST /v1/chat/completions, but make none",
    "audio": "models here read and write text",
    "fine_tuning": "the plugin `finetuning` opens its jobs, which can be cancelled but not paused",
}
"""OpenAI's endpoints that are missing, and what to use or configure instead."""
OURS: Final[Mapping[str, str]] = {
    "/api/cache": "cache",
    "/api/comparisons": "comparison",
    "/api/conversations": "conversations",
    "/api/costs": "usage",
    "/api/experiments": "experiments",
    "/api/finetuning": "finetuning",
    "/api/limits": "limits",
    "/api/metrics": "usage",
    "/api/ollama/compare": "comparison",
    "/api/rag": "documents",
    "/api/retry": "retry",
    "/api/templates": "templates",
    "/compare": "comparison",
    "/metrics": "metrics",
    "/v1/feedback": "usage",
    "/v1/organization": "usage",
}
"""Prefixes of our own endpoints' paths, and the plugin that serves them."""


class UnknownPaths:
    """routes: all existing routes, whose paths include the base path."""

    def __init__(self, config: Config, routes: Iterable[Route]) -> None:
        self.base = config.listen.base_path
        self.chains = config.chains
        self.there = {route.path for route in routes if "{" not in route.path}

    def dialect(self, path: str) -> Callable[[ProxyError], bytes]:
        """How to write errors for a path that has no route, or whose route is not found yet."""
        return ollama_out.error_body if OLLAMAS.fullmatch(path.removeprefix(self.base)) else openai_errors.error_body

    def nowhere(self, method: str, path: str) -> NotFound:
        """The error for a path without a route."""
        if self.base and not path.startswith(f"{self.base}/"):
            hint = f"every path here begins with {self.base} (listen.base_path)"
            return unknown(method, path, hint)
        bare = path.removeprefix(self.base)
        if bare in CHAINS and CHAINS[bare] not in self.chains:
            return NotFound(f"{path} is off: no chain `{CHAINS[bare]}` in the configuration.", code="route_off")
        if OLLAMAS.fullmatch(bare):
            return NotFound(f"{path} is off: name an upstream under `writes` in the configuration.", code="route_off")
        first = bare.removeprefix("/v1/").partition("/")[0] if bare.startswith("/v1/") else ""
        if first in INSTEAD:
            instead = INSTEAD[first].replace("/v1/", f"{self.base}/v1/")
            return unknown(method, path, f"this endpoint of OpenAI's is not served here; {instead}")
        return unknown(method, path, self.plugin(bare) or self.meant(bare))

    def plugin(self, bare: str) -> str:
        """A hint at the plugin that would serve this path, if it is not configured; otherwise ""."""
        for start, name in OURS.items():
            if f"{bare}/".startswith(f"{start}/") and not any(one.startswith(self.base + start) for one in self.there):
                return f"the plugin `{name}` must be in the configuration"
        return ""

    def meant(self, bare: str) -> str:
        """A hint at an existing path: with or without `/v1`, without the last slash, or spelled similarly; else ""."""
        for one in (f"/v1{bare}", bare.removeprefix("/v1"), bare.rstrip("/")):
            there = self.base + one in self.there or one.startswith("/v1/models/")
            if one != bare and there and one != "/":
                return f"did you mean {self.base}{one}?{'' if one == bare.rstrip('/') else f'  {BASES}'}"
        near = get_close_matches(self.base + bare, self.there, 1, ALIKE) if len(bare) <= LONGEST else []
        return f"did you mean {near[0]}?" if near else ""


BASES: Final = "OpenAI's clients take a base URL that ends in /v1, Ollama's one without it."


def unknown(method: str, path: str, hint: str) -> NotFound:
    return NotFound(f"Unknown request URL: {method} {path}{hint and ': '}{hint}", code="unknown_url")
