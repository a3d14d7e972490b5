"""What all settings are made of: strict models, and kinds of values."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, cast
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SecretStr,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticKnownError
from pydantic_core.core_schema import no_info_before_validator_function

MIB = 1024 * 1024


NO_SCHEMA: Final = ("cls", "default", "metadata", "ref", "serialization")
"""Parts of a schema where there is none."""


def _no_boolean(kind: Literal["int_type", "float_type"]) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        if type(value) is bool:
            raise PydanticKnownError(kind)
        return value

    return checked


BOOLEANS: Final = {"int": _no_boolean("int_type"), "float": _no_boolean("float_type")}


def _strict(schema: Any) -> Any:
    """The same, with numbers that no boolean is taken for: pydantic's own strict ones would refuse those of a
    `"${VARIABLE}"` in quotes, too.  Settings inside of others have theirs already.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(map(_strict, schema))
    if not isinstance(schema, dict) or schema.get("type") in ("model", "definition-ref"):
        return schema
    if (wrong := BOOLEANS.get(str(schema.get("type")))) is not None:
        return no_info_before_validator_function(wrong, cast(CoreSchema, schema))
    made = {name: part if name in NO_SCHEMA else _strict(part) for name, part in schema.items()}
    if schema.get("type") == "union":
        made["choices"] = [_choice(one) for one in schema["choices"]]
    return made


def _choice(schema: Any) -> Any:
    """One of several kinds that a value may have, under the name that errors have for it."""
    named = isinstance(schema, dict) and schema.get("type") in BOOLEANS
    return (_strict(schema), schema["type"]) if named else _strict(schema)


class Strict(BaseModel):
    """Base of every settings model: unknown keys are errors, a boolean is no number, values never change.

    What the docstrings of its fields say is read by `reference`, which alone needs it: pydantic would parse the
    source of every model whenever anything starts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        made = handler(source)
        model = cast(dict[str, Any], handler.resolve_ref_schema(made))
        while model["type"] != "model":  # around it stand validators of the whole
            model = model["schema"]
        model["schema"] = _strict(model["schema"])
        return made


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
        raise ValueError("a URL here must have no user, query or fragment")
    if not (url.isascii() and url.isprintable()) or " " in url:  # it goes into the head of every request
        raise ValueError(f"{url!r} contains characters that a URL cannot have; write a name outside ASCII as xn--…")
    check_port(parts)
    return url.rstrip("/")


def _ollama_paths(urls: tuple[str, ...]) -> tuple[str, ...]:
    for url in urls:
        if (end := url.rpartition("/")[2]) in ("v1", "api"):
            base = url.removesuffix(f"/{end}")
            kind = "; /v1 belongs to `openai` URLs" if end == "v1" else ""
            raise ValueError(f"{url!r}: an `ollama` URL ends before Ollama's own /api: {base}{kind}")
    return urls


ENDPOINTS = ("/chat/completions", "/completions", "/embeddings", "/models", "/responses")


def _openai_paths(urls: tuple[str, ...]) -> tuple[str, ...]:
    for url in urls:
        if endpoint := next((one for one in ENDPOINTS if url.endswith(one)), None):
            base = url.removesuffix(endpoint)
            raise ValueError(f"{url!r}: a base URL ends before the endpoints' paths: {base}")
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


ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9_-]+(\.[a-z0-9_-]+)*)(:[0-9]{1,5})?")
SUBDOMAINS: Final = re.compile(r"[a-z][a-z0-9+.-]*://\*\.(([a-z0-9_-]+\.)+[a-z][a-z0-9-]*|localhost)(:[0-9]{1,5})?")


def _origin(text: str) -> str:
    """As browsers send them.  `null` is none: whoever wants to can have his page sent it."""
    origin = text.lower()
    if origin == "*" or ORIGIN.fullmatch(origin) or SUBDOMAINS.fullmatch(origin):
        return origin
    if "*" in origin:
        raise ValueError(f"{text!r}: a * stands for any origin, or as in 'https://*.example.com' for subdomains")
    raise ValueError(f"{text!r} is not an origin such as 'https://app.example.com', without a path")


def _header_word(key: SecretStr) -> SecretStr:
    """What may stand in a header: a line break in a key would begin another header."""
    if not re.fullmatch(r"[!-~]+", key.get_secret_value()):
        raise ValueError("a key for an upstream is one word of printable ASCII; is its environment variable set?")
    return key


Url = Annotated[str, AfterValidator(_http_url)]
BearerKey = Annotated[SecretStr, AfterValidator(_header_word)]
BasePath = Annotated[str, AfterValidator(_base_path)]
Network = Annotated[str, AfterValidator(_network)]
Origin = Annotated[str, AfterValidator(_origin)]
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
