"""Converts an example of a dataset, whatever its format, to the one format that trainers get.

Source: OpenAI's guide "Supervised fine-tuning", the chat format with tools and weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.errors import BadCall
from proxy.types import JSON, Message, Tool
from proxy.wire import openai_messages, read
from proxy.wire.openai_messages import Limits

LIMITS: Final = Limits()
FIELDS: Final = frozenset({"messages", "tools", "parallel_tool_calls"})
WEIGHT: Final = "weight"
MOST: Final = 2000
"""Maximum messages of an example."""
LETTERS: Final = 4
"""Characters per token: an estimate that does not need the model's tokenizer."""
FRAME: Final = 4
"""Tokens added for each message."""


@dataclass(frozen=True, slots=True)
class Example:
    """document: `messages`, whose contents are text, and `tools` if there are any.  tokens: an estimate."""

    document: Mapping[str, JSON]
    tokens: int


def example(found: JSON) -> Example:
    """Raises BadCall, which names the wrong field."""
    record = read.mapping(found, "example")
    if "messages" not in record and "prompt" in record:
        return pair(record)
    for name in record:
        if name not in FIELDS:
            raise BadCall(f"Unknown field: '{name[:100]}'.", param=name[:100], code="unknown_parameter")
    given = read.array(read.needed(record, "messages", "messages"), "messages")
    if len(given) > MOST:
        raise wrong("messages", f"there are more than {MOST}")
    said = openai_messages.messages(given, LIMITS)
    tools = openai_messages.tools(record.get("tools") or [], LIMITS)
    check(said, given)
    made: dict[str, JSON] = {"messages": [written(one, raw) for one, raw in zip(said, given, strict=True)]}
    if tools:
        made["tools"] = [tool(one) for one in tools]
    if record.get("parallel_tool_calls") is not None:
        made["parallel_tool_calls"] = read.flag(record["parallel_tool_calls"], "parallel_tool_calls")
    return Example(made, tokens_of(said, tools))


def pair(record: Mapping[str, JSON]) -> Example:
    """A prompt and the answer that the model should give."""
    for name in record:
        if name not in ("prompt", "completion"):
            raise BadCall(f"Unknown field: '{name[:100]}'.", param=name[:100], code="unknown_parameter")
    texts = [read.filled(read.needed(record, name, name), name) for name in ("prompt", "completion")]
    return turns(zip(("user", "assistant"), texts, strict=True))


def turns(said: Iterable[tuple[str, str]]) -> Example:
    """A conversation, from pairs of role and text.  Raises BadCall."""
    return example({"messages": [{"role": role, "content": text} for role, text in said]})


def check(said: Sequence[Message], given: Sequence[Mapping[str, JSON]]) -> None:
    """Check that there is something to learn.  Raises BadCall."""
    called: set[str] = set()
    for index, (one, raw) in enumerate(zip(said, given, strict=True)):
        at = f"messages[{index}]"
        if strange := next((name for name in raw if name not in openai_messages.MESSAGE and name != WEIGHT), None):
            raise BadCall(f"Unknown field: '{at}.{strange[:100]}'.", param=at, code="unknown_parameter")
        if one.images:
            raise wrong(f"{at}.content", "only text can be used for training, no pictures")
        weigh(one, raw.get(WEIGHT), f"{at}.{WEIGHT}")
        if one.role == "tool" and one.tool_call_id not in called:
            raise wrong(f"{at}.tool_call_id", "no message before it calls this tool")
        called.update(call.id for call in one.tool_calls)
    if said[-1].role != "assistant":
        raise wrong("messages", "the last one must be the assistant's")
    if all(raw.get(WEIGHT) == 0 for one, raw in zip(said, given, strict=True) if one.role == "assistant"):
        raise wrong("messages", "all of the assistant's have the weight 0, so that there is nothing to learn")


def weigh(one: Message, weight: JSON, at: str) -> None:
    if weight is None:
        return
    if one.role != "assistant":
        raise wrong(at, "only messages of the assistant have one")
    if type(weight) is not int or weight not in (0, 1):
        raise wrong(at, "it is 0 or 1")


def written(one: Message, raw: Mapping[str, JSON]) -> dict[str, JSON]:
    made: dict[str, JSON] = {"role": one.role, "content": one.text}
    if one.name:
        made["name"] = one.name
    if one.tool_calls:
        made["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in one.tool_calls
        ]
    if one.tool_call_id:
        made["tool_call_id"] = one.tool_call_id
    if raw.get(WEIGHT) is not None:
        made[WEIGHT] = raw[WEIGHT]
    return made


def tool(one: Tool) -> dict[str, JSON]:
    function = {"name": one.name, "description": one.description, "parameters": one.parameters}
    return {"type": "function", "function": function}


def tokens_of(said: Sequence[Message], tools: Sequence[Tool]) -> int:
    letters = sum(len(one.text) + sum(len(call.name) + len(call.arguments) for call in one.tool_calls) for one in said)
    letters += sum(len(one.name) + len(one.description) + len(read.dumped(one.parameters)) for one in tools)
    return FRAME * len(said) + -(-letters // LETTERS)


def wrong(name: str, why: str) -> BadCall:
    return BadCall(f"Invalid '{name}': {why}.", param=name, code="invalid_value")
