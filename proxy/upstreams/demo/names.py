"""Names of models: `[host/][namespace/]model[:tag]`, with Ollama's defaults and cloud suffixes."""

import re
from dataclasses import dataclass

from .go_format import quoted
from .refusals import CLOUD_OFF, Refused

HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


@dataclass(frozen=True, slots=True)
class Name:
    host: str
    namespace: str
    model: str
    tag: str

    @property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def short(self) -> str:
        """The shortest form that still shows the tag, e.g. `demo:latest`."""
        return self.full.removeprefix("registry.ollama.ai/").removeprefix("library/")

    @property
    def key(self) -> str:
        return self.full.lower()


def parsed(text: str) -> Name | None:
    """The name in full, or None if it is malformed."""
    path, _, last = text.rpartition("/")
    model, colon, tag = last.partition(":")
    host, _, namespace = path.rpartition("/")
    name = Name(host or "registry.ollama.ai", namespace or "library", model, tag if colon else "latest")
    return name if _valid(name) else None


def _valid(name: Name) -> bool:
    return bool(
        HOST.fullmatch(name.host)
        and NAMESPACE.fullmatch(name.namespace)
        and PART.fullmatch(name.model)
        and PART.fullmatch(name.tag)
    )


def local(text: str) -> str:
    """The name to look up here. Cloud names are refused, as with OLLAMA_NO_CLOUD=1."""
    bare = text.removesuffix(":local")
    cloudy = bare.endswith((":cloud", "-cloud")) and ":" in bare.rpartition("/")[2]
    if cloudy and ":local" in text:
        raise Refused(400, f"use either :local or :cloud, not both: {quoted(text)}")
    if cloudy:
        raise Refused(403, CLOUD_OFF)
    return bare
