"""What all settings are made of: strict models, and kinds of values."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, WithJsonSchema

MIB = 1024 * 1024


class Strict(BaseModel):
    """Base of every settings model: unknown keys are errors, values never change.

    What the docstrings of its fields say is read by `reference`, which alone needs it: pydantic would parse the
    source of every model whenever anything starts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


def check_port(parts: SplitResult) -> None:
    """Raises ValueError; a URL needs none, but a wrong one would only be noticed by who connects."""
    try:
        wrong = parts.port == 0
    except ValueError:
        wrong = True
    if wrong:
        raise ValueError("the port of a URL is a number from 1 to 65535")


def _http_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http:// or https:// URL")
    if parts.username or parts.query or parts.fragment:
        raise ValueError("a URL here has no user, query or fragment")
    if not (url.isascii() and url.isprintable()) or " " in url:  # it goes into the head of every request
        raise ValueError(f"{url!r} has letters that no URL has; a name outside ASCII is written as xn--…")
    check_port(parts)
    return url.rstrip("/")


def _ollama_paths(urls: tuple[str, ...]) -> tuple[str, ...]:
    for url in urls:
        if (end := url.rpartition("/")[2]) in ("v1", "api"):
            base = url.removesuffix(f"/{end}")
            kind = "; /v1 belongs to `openai` URLs" if end == "v1" else ""
            raise ValueError(f"{url!r}: an `ollama` URL is what stands before Ollama's own /api: {base}{kind}")
    return urls


ENDPOINTS = ("/chat/completions", "/completions", "/embeddings", "/models", "/responses")


def _openai_paths(urls: tuple[str, ...]) -> tuple[str, ...]:
    for url in urls:
        if endpoint := next((one for one in ENDPOINTS if url.endswith(one)), None):
            base = url.removesuffix(endpoint)
            raise ValueError(f"{url!r}: a base URL is what stands before the endpoints: {base}")
    return urls


def _base_path(path: str) -> str:
    path = path.rstrip("/")
    if path and not re.fullmatch(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+", path):
        raise ValueError(f"{path!r} is not a path such as '/llm'")
    return path


def _network(text: str) -> str:
    try:
        whole = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is neither an address nor a network such as '10.0.0.0/8'") from None
    if ipaddress.ip_interface(text).ip != whole.network_address:
        raise ValueError(f"{text!r} is an address inside of a network; did you mean '{whole}'?")
    return text


def _header_word(key: SecretStr) -> SecretStr:
    """What may stand in a header: a line break in a key would begin another header."""
    if not re.fullmatch(r"[!-~]+", key.get_secret_value()):
        raise ValueError("a key for an upstream is one word of printable ASCII; is its environment variable set?")
    return key


Url = Annotated[str, AfterValidator(_http_url)]
BearerKey = Annotated[SecretStr, AfterValidator(_header_word)]
BasePath = Annotated[str, AfterValidator(_base_path)]
Network = Annotated[str, AfterValidator(_network)]
Urls = Annotated[
    tuple[Url, ...],
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    AfterValidator(lambda urls: tuple(dict.fromkeys(urls))),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
"""One URL, or a list of them."""
OllamaUrls = Annotated[Urls, AfterValidator(_ollama_paths)]
OpenAIUrls = Annotated[Urls, AfterValidator(_openai_paths)]


GO_DURATION = re.compile(r"-?(\d+(\.\d*)?(ns|us|µs|ms|s|m|h))+")


def _keep_alive(value: float | str) -> float | str:
    if isinstance(value, str) and not GO_DURATION.fullmatch(value):
        raise ValueError(f"{value!r} is neither seconds nor a duration such as '10m' or '-1s'")
    return value


KeepAlive = Annotated[float | str, AfterValidator(_keep_alive)]
