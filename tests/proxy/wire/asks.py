"""Requests for the tests of the wire modules, and their translations."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping

import orjson
import pytest
from pydantic import BaseModel

from proxy.errors import BadCall
from proxy.models import ModelInfo
from proxy.types import JSON
from proxy.wire import ollama_chat
from proxy.wire.ollama_chat import Pins, Plan
from proxy.wire.openai_chat import read_chat
from proxy.wire.openai_fields import Asked
from proxy.wire.openai_messages import Limits

LIMITS = Limits()
HI: JSON = [{"role": "user", "content": "hi"}]
PNG = b"\x89PNG\r\n\x1a\n and so on"
JPEG = b"\xff\xd8\xff\xe0 and so on"
WEBP = b"RIFF\x10\x00\x00\x00WEBPVP8 and so on"
WAV = b"RIFF\x10\x00\x00\x00WAVEfmt and so on"
GIF = b"GIF89a and so on"
WEATHER: JSON = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def asked(**body: JSON) -> Asked:
    """The request `hi` with these fields."""
    return read_chat({"model": "m", "messages": HI, **body}, LIMITS)


def refused(**body: JSON) -> BadCall:
    with pytest.raises(BadCall) as caught:
        asked(**body)
    return caught.value


def plan(info: ModelInfo | None = None, **body: JSON) -> Plan:
    return ollama_chat.plan("m", asked(**body).chat(), stream=False, pins=Pins(), info=info)


def sent(**body: JSON) -> JSON:
    """The JSON that is sent to Ollama."""
    return orjson.loads(orjson.dumps(plan(**body).body))


def tool(name: str = "weather", **more: JSON) -> JSON:
    return {"type": "function", "function": {"name": name, "parameters": WEATHER, **more}}


def named(name: str) -> JSON:
    return {"type": "function", "function": {"name": name}}


def data_url(picture: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(picture).decode()}"


def picture(of: bytes = PNG, **more: JSON) -> JSON:
    return {"type": "image_url", "image_url": {"url": data_url(of), **more}}


def words(text: str) -> JSON:
    return {"type": "text", "text": text}


def user(content: JSON) -> JSON:
    return [{"role": "user", "content": content}]


def nested(levels: int, inner: JSON = None) -> JSON:
    for _ in range(levels):
        inner = {"deep": inner}
    return inner


def unknown_fields(model: BaseModel) -> Iterator[str]:
    """Fields anywhere in a model of the SDK that the SDK does not know."""
    yield from model.model_extra or ()
    for name in type(model).model_fields:
        value = getattr(model, name)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, BaseModel):
                yield from unknown_fields(one)


def schemas_in(schema: Mapping[str, JSON]) -> Iterator[Mapping[str, JSON]]:
    """A schema as sent to Ollama, and all schemas within it."""
    yield schema
    items = schema.get("items", [])
    for inner in (
        *schema.get("properties", {}).values(),
        *schema.get("anyOf", []),
        *(items if isinstance(items, list) else [items]),
    ):
        yield from schemas_in(inner)
