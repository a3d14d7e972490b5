"""What makes two calls equal: everything that the upstream will be asked, and who may share the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import orjson

from proxy.types import JSON, Call, Chat, Complete, Embed, Message

VERSION: Final = "1"
"""Of the key and of what is kept under it; another one finds nothing that was kept before."""
PROMPT: Final = 65_536
"""Characters of a prompt that can be looked through afterwards."""


def prefix_of(space: str, tenant: str) -> str:
    """What the keys of one tenant begin with.  space: the plugin's name in the configuration."""
    return f"{space}:{VERSION}:{hashlib.sha256(tenant.encode()).hexdigest()[:16]}:"


def key_of(asked: JSON, route: str, stamp: str) -> str:
    """32 hexadecimal digits over all of it; the order of names in a mapping does not count.

    stamp: of the model, which differs when the same question may be answered otherwise.
    """
    told = orjson.dumps([route, stamp, asked], option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return hashlib.sha256(told).hexdigest()[:32]


def asked_of(call: Call) -> JSON:
    """A chat or a completion as what JSON can hold: every field that reaches the upstream."""
    ask = call.ask
    if isinstance(ask, Chat):
        plain = not any(one.images or one.tool_calls for one in ask.messages)
        messages = ask.messages if plain else list(map(spelled, ask.messages))
        # Not the client's own last question: it is among the messages, as the upstream will read it.
        return [messages, ask.tools, ask.tool_choice, ask.parallel_tool_calls, ask.format, ask.options, ask.think,
                ask.logprobs, ask.n]  # fmt: skip
    if isinstance(ask, Complete) and ask.images:
        return [ask.prompts, ask.raw, ask.suffix, ask.system, [digest(one.base64) for one in ask.images], ask.format,
                ask.options, ask.think, ask.logprobs, ask.n, ask.best_of]  # fmt: skip
    return ask


def spelled(message: Message) -> JSON:
    """Pictures by digest, and arguments as values: how their JSON was spelled does not count."""
    return [
        message.role,
        message.text,
        [digest(one.base64) for one in message.images],
        message.thinking,
        [[one.id, one.name, arguments(one.arguments)] for one in message.tool_calls],
        message.tool_call_id,
        message.name,
    ]


def arguments(text: str) -> JSON:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return [text]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def repeats(call: Call) -> bool:
    """Whether the caller wants the same answer every time: by a seed, or by leaving nothing to chance."""
    options = {} if isinstance(call.ask, Embed) else call.ask.options
    return isinstance(call.ask, Embed) or options.get("seed") is not None or options.get("temperature") == 0


def prompt_of(call: Call) -> str:
    """The words that were asked, for whoever looks through what is kept."""
    return "\n".join(_words(call))[:PROMPT]


def _words(call: Call) -> Iterator[str]:
    ask = call.ask
    if isinstance(ask, Chat):
        yield from (one.text for one in ask.messages)
    elif isinstance(ask, Complete):
        yield from (ask.system, *ask.prompts, ask.suffix)
    else:
        yield from ask.inputs
