"""The settings reference and the JSON schema, made from the models that check the settings."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from functools import cache
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from proxy import registry
from proxy.advice import docstrings
from proxy.config import Config
from proxy.types import JSON
from proxy.wire import ollama_in, openai_chat, openai_completions, openai_embeddings, openai_responses

HEAD = """# Settings

Made by `gemmapy-proxy reference` from the code that checks them; do not edit.

Every value may hold `${NAME}` or `${NAME:-default}` from the environment.  Unknown keys are errors.  Times are
seconds and sizes are bytes.
"""


@cache
def described(model: type[BaseModel]) -> type[BaseModel]:
    """The model, whose fields and those of the models in it are described by the docstrings that follow them."""
    said: dict[str, str] = {}
    for cls in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        said |= docstrings(cls)
    for name, field in model.model_fields.items():
        field.description = field.description or said.get(name)
        for inner in _models_in(field.annotation):
            described(inner)
    model.model_rebuild(force=True)  # its schema is made anew, with them
    return model


def settings_page() -> str:
    """Every setting of the file and of every installed plugin, as Markdown."""
    parts = [HEAD, *(_section("The file", described(Config), ""))]
    for name in sorted(registry.known()):
        cls = registry.find(name)
        said = " ".join((cls.__doc__ or _module_doc(cls)).split())
        parts += [f"\n## Plugin `{name}`\n\n{said}\n", *_table(described(cls.Settings))]
        for setting, field in cls.Settings.model_fields.items():
            for inner in dict.fromkeys(_models_in(field.annotation)):
                parts += _section(f"Plugin `{name}`, one of `{setting}`", inner, f"plugins.{name}.{setting}.")
    return "\n".join(part.rstrip("\n") for part in parts) + "\n"


def _module_doc(cls: type) -> str:
    import sys

    return (sys.modules[cls.__module__].__doc__ or "").strip()


def _section(title: str, model: type[BaseModel], path: str) -> Iterator[str]:
    said = " ".join((model.__doc__ or "").split())
    yield f"\n## {title}\n\n{said}\n"
    yield from _table(model)
    for name, field in model.model_fields.items():
        for inner in _models_in(field.annotation):
            mapped = typing.get_origin(field.annotation) is dict
            here = f"{path}{name}" + (".NAME" if mapped else "")
            yield from _section(f"`{here}`", inner, f"{here}.")


def _table(model: type[BaseModel]) -> Iterator[str]:
    if not model.model_fields:
        yield "No settings."
        return
    yield "\n| setting | type | default | meaning |\n| --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        said = " ".join((field.description or "").split())
        yield f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {said} |"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]


NAMES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    SecretStr: "secret",
    Decimal: "number",
    date: "date",
    type(None): "null",
}


def _type(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(one) for one in inner)
    if origin is typing.Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin is dict:
        return f"mapping of {_type(inner[1])}"
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return NAMES.get(annotation, "anything")


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel) or value in ({}, ()):
        return "empty" if value in ({}, ()) else "see below"
    if isinstance(value, dict):
        return "see `config/proxy.yaml`"
    if isinstance(value, tuple):
        return ", ".join(f"`{one}`" for one in value)
    return "unset" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


PARAMETERS = """# Parameters

Made by `gemmapy-proxy reference --parameters` from the code that reads them; do not edit.

What becomes of every field of a request. **honoured**: done. **emulated**: done by the proxy, since Ollama cannot.
**carried**: kept for plugins and records, read by no model. **ignored**: has no effect. **refused**: a named 400.
What was emulated, changed or ignored in a call is listed in the `x-gemmapy-params` header of its answer; with
`params: strict` it is a 400. Fields that are not listed are ignored and told, unless a plugin declared them as its own.
No list has more than 10,000 items where no other number is said, and a prompt of tokens has a million at most.
"""

OTHERS = """
## At an `openai` upstream

The tables above are of Ollama. Any other server, one under `openai:` in `upstreams:`, is asked in its own dialect, and
what is emulated for Ollama is then native. What is not the same:

| field | at such an upstream |
| --- | --- |
| `max_tokens` | is sent as `max_completion_tokens` to chats. |
| `options` | those beyond OpenAI's are sent if the upstream's `options` lists them, else ignored and told. |
| `reasoning_effort` | `max` becomes high and is told; Ollama's `think: true` leaves it to the model. |
| `tool_choice` | native, and checked; of a named tool, or of allowed ones, the others are hidden. |
| `parallel_tool_calls` | native, and `false` keeps the first call in any case. |
| `response_format` | native, and asked for in the prompt and checked all the same. |
| `reasoning_content` of earlier turns | ignored and told. |
| pictures that a function gave | follow its output as a user's message. |
| `suffix`, `raw` | go to `/completions`; a system message beside them is ignored and told, images are a 400. |
| `dimensions` | sent; a longer answer is cut and brought to unit length. |
| carried fields | are not sent: nothing of a caller leaves but what is asked. |

An empty call, which would load a model in Ollama, is answered at once: such a server has loaded what it lists.
"""


def parameters_page() -> str:
    """What becomes of every field of a request, as Markdown."""
    rows = [f"| `{name}` | {field.fate} | {field.says} |" for name, field in openai_chat.FIELDS.items()]
    head = "| field | fate | |\n| --- | --- | --- |"
    embeddings = [f"| `{name}` | {says} |" for name, says in openai_embeddings.FIELDS.items()]
    parts = [PARAMETERS, "## `POST /v1/chat/completions`\n", head, *rows]
    legacy = [f"| `{name}` | {field.fate} | {field.says} |" for name, field in openai_completions.FIELDS.items()]
    parts += ["\n## `POST /v1/completions`\n", head, *legacy]
    responses = [f"| `{name}` | {field.fate} | {field.says} |" for name, field in openai_responses.FIELDS.items()]
    parts += ["\n## `POST /v1/responses`\n", head, *responses]
    parts += ["\n## `POST /v1/embeddings`\n", "| field | |\n| --- | --- |", *embeddings]
    natives = {
        "chat": ollama_in.CHAT,
        "generate": ollama_in.GENERATE,
        "embed": ollama_in.EMBED,
        "embeddings": ollama_in.EMBEDDINGS,
    }
    for path, table in natives.items():
        native = [f"| `{name}` | {field.fate} | {field.says} |" for name, field in table.items()]
        parts += [f"\n## `POST /api/{path}`\n", head, *native]
    return "\n".join([*parts, OTHERS])


VARIABLE = {"type": "string", "pattern": r"\$\{\w+(:-[^}]*)?\}"}


def with_variables(node: JSON) -> JSON:
    """A schema in which `${NAME}` may stand for every number, boolean and word."""
    if isinstance(node, list):
        return [with_variables(one) for one in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") in ("integer", "number", "boolean") or "enum" in node or "const" in node:
        kept = {key: node[key] for key in ("default", "description", "title") if key in node}
        return {**kept, "anyOf": [node, VARIABLE]}
    return {key: with_variables(value) for key, value in node.items()}


def schema() -> JSON:
    """The JSON schema of the file, with the settings of every installed plugin under its own name."""
    whole = described(Config).model_json_schema()
    plugins: dict[str, JSON] = {}
    for name in sorted(registry.known()):
        settings = described(registry.find(name).Settings).model_json_schema()
        for key, definition in settings.pop("$defs", {}).items():
            whole.setdefault("$defs", {})[key] = definition
        settings.setdefault("properties", {})["use"] = {"type": "string"}
        plugins[name] = {"anyOf": [settings, {"type": "null"}]}
    whole["properties"]["plugins"]["properties"] = plugins
    whole = with_variables(whole)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "GemmaPy Proxy", **whole}
