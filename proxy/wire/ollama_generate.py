"""Complete -> the body of Ollama's /api/generate, and its answer -> Events."""

from __future__ import annotations

from proxy.models import ModelInfo
from proxy.types import JSON, Complete
from proxy.wire.ollama_chat import Pins, Plan, must_fit, options_of, sampled
from proxy.wire.ollama_lines import ChatReader


def plan(model: str, ask: Complete, stream: bool, pins: Pins, info: ModelInfo) -> Plan:
    """Plan the request for one prompt.  Nothing is truncated."""
    notes: dict[str, str] = {}
    body: dict[str, JSON] = {"model": model, "stream": stream, "truncate": False, "shift": pins.shift}
    body |= prompt_of(ask)
    body |= sampled(ask, notes, info)
    if "raw" in body:
        body["think"] = False  # without a template Ollama cannot tell where the thinking ends
    if options := {**options_of(ask.options), **pins.options}:
        body["options"] = options
    form = ask.format
    schema = form.schema if form is not None and form.strict else None
    return Plan(pins.around(body), notes, json=form is not None, schema=schema)


def prompt_of(ask: Complete) -> dict[str, JSON]:
    """The prompt and its fields.  One with a suffix is not raw: the model's template says where the suffix goes."""
    body: dict[str, JSON] = {"prompt": ask.prompts[0]}
    if ask.raw and not ask.suffix:
        body["raw"] = True
    if ask.suffix:
        body["suffix"] = ask.suffix
    if ask.system:
        body["system"] = ask.system
    if ask.images:
        body["images"] = [image.base64 for image in ask.images]
    if ask.format is not None:
        body["format"] = ask.format.schema or "json"
        body["prompt"] += f"\n\n{must_fit(ask.format.schema)}"
    return body


class GenerateReader(ChatReader):
    """Reads the lines of one /api/generate answer, or its only document."""

    def message_of(self, data: dict[str, JSON]) -> dict[str, JSON]:
        said = {"role": "assistant", "content": data["response"]}
        return said | {name: data[name] for name in ("thinking", "tool_calls") if name in data}
