"""The simulator's answers: they say that they are simulated, and are the same for the same request."""

from dataclasses import dataclass, replace
from typing import Any

import orjson

from .generation_request import GenerationRequest, Message, schema_of
from .prompts import Prompt
from .schema import instance

OPENING = "This is a simulated answer; no model is running."
QUOTED = 1_000
"""Maximum characters of a message that are quoted."""


@dataclass(frozen=True, slots=True)
class Said:
    """One answer, the simulator's own or prescribed by a test."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    pieces: tuple[str, ...] = ()
    """The text as it is split into lines; overrides `text`."""
    done_reason: str = "stop"

    @property
    def whole(self) -> str:
        return "".join(self.pieces) or self.text

    def but(self, **changes: Any) -> "Said":
        return replace(self, **changes)

    def inlined(self) -> "Said":
        """The answer with its thinking at the beginning of the text, between tags."""
        thought = f"<think>\n{self.thinking}\n</think>\n\n" if self.thinking else ""
        pieces = (thought, *self.pieces) if self.pieces and thought else self.pieces
        return replace(self, thinking="", text=thought + self.text, pieces=pieces)


def answer(ask: GenerationRequest, prompt: Prompt) -> Said:
    """Calls of the tools that the user's message names, otherwise a value of the requested format, otherwise text."""
    schema = schema_of(ask)
    last = prompt.messages[-1] if prompt.messages else Message("user")
    thinking = f"The last of {_counted(len(prompt.messages), 'message')} is from the {last.role}."
    called = tuple((tool.name, tool.arguments()) for tool in ask.tools if tool.meant_by(last.content))
    if called and last.role == "user":
        return Said(thinking=thinking, tool_calls=called)
    if schema is not None:
        return Said(_formatted(schema, last), thinking)
    return Said(_text(ask, prompt), thinking)


def _formatted(schema: dict[str, Any], last: Message) -> str:
    if schema:
        return orjson.dumps(instance(_in_turn(schema, last))).decode()
    return orjson.dumps({"simulated": True, "said": last.content[:QUOTED]}).decode()


def _in_turn(schema: dict[str, Any], last: Message) -> dict[str, Any]:
    """After a tool's result, the last alternative is preferred: an agent that may only answer by tool calls has one
    that ends its work, and would otherwise never get there."""
    if last.role == "tool" and isinstance(options := schema.get("anyOf"), list):
        return {**schema, "anyOf": options[::-1]}
    return schema


def _text(ask: GenerationRequest, prompt: Prompt) -> str:
    if ask.suffix:
        return f" {OPENING} It stands between a prompt and a suffix. "
    results = _results(prompt.messages)
    if results:
        return f"{OPENING} The tool said: {' and '.join(results)}"
    said = next((item.content for item in reversed(prompt.messages) if item.role == "user"), "")
    told = f' You said: "{said[:QUOTED]}"' if said else " You said nothing."
    return f"{OPENING}{told} ({_seen(ask, prompt)})"


def _seen(ask: GenerationRequest, prompt: Prompt) -> str:
    images = sum(message.images for message in prompt.messages)
    messages = _counted(len(prompt.messages), "message")
    return f"{messages}, {_counted(images, 'image')}" if images else messages


def _results(messages: tuple[Message, ...]) -> list[str]:
    """The results of the tools that the assistant called last."""
    found = []
    for message in reversed(messages):
        if message.role != "tool":
            break
        found.append(message.content[:QUOTED])
    return found[::-1]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
