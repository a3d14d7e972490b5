"""What makes two calls equal: everything that the upstream will be asked, and who may share the answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Final
from weakref import ReferenceType, ref

import orjson
from msgspec.structs import asdict, replace

from proxy.types import JSON, Ask, Call, Chat, Complete, Embed, Image, Message

VERSION: Final = "3"
"""Of the key and of what is kept under it; another one finds nothing that was kept before."""
MOST: Final = 65_536
"""Bytes of a question that can be looked through afterwards."""
LONG: Final = re.compile(r"[0-9]{16}")
"""Digits that JSON's readers may round off."""
DEEP: Final = 200
"""Levels that may be told with all that stands around them; orjson writes 254."""
CHAT_PARTS: Final = 9
PLAIN: Final = attrgetter("role", "text", "thinking", "tool_call_id", "name")
"""All of a message without pictures and calls, as a tuple: JSON of that takes a quarter of the time."""
PICTURES: Final = attrgetter("images")
CALLS: Final = attrgetter("tool_calls")
ANY: Final = "*"
WORDLESS: Final = frozenset({"role", "name", "id", "tool_call_id", "mode", "base64", "url", "type", "names"})


@lru_cache(4096)
def prefix_of(space: str, tenant: str) -> str:
    """What the keys of one tenant begin with.  space: the plugin's name in the configuration."""
    return f"{space}:{VERSION}:{hashlib.sha256(tenant.encode()).hexdigest()[:16]}:"


def told_of(asked: JSON, route: str, stamp: str) -> bytes:
    """All that makes a call what it is, as JSON; the order of names in a mapping does not count.

    stamp: of the model, which differs when the same question may be answered otherwise.
    """
    return orjson.dumps([route, stamp, asked], asdict, orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


def key_of(told: bytes) -> str:
    """32 hexadecimal digits over all of it."""
    return hashlib.sha256(told).hexdigest()[:32]


class Keys:
    """The keys of chats that are alive: the edge hands on the same one when the same request comes again.

    Each goes with its chat, so that there are never more than calls under way and requests remembered at the edge.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[ReferenceType[Chat], str, str, bytes, str]] = {}
        """By the address of the chat: itself, route, stamp, what was told, key."""

    def of(self, call: Call, stamp: str) -> tuple[bytes, str]:
        """What `told_of` and `key_of` make of a call."""
        ask = call.ask
        found = self.known.get(id(ask))
        if found is not None and found[0]() is ask and found[1] == call.route and found[2] == stamp:
            return found[3], found[4]
        told = told_of(asked_of(ask), call.route, stamp)
        return told, key_of(told)

    def remember(self, call: Call, stamp: str, told: bytes, digest: str) -> None:
        """What `of` gave, of a chat that is worth it: one that came before."""
        ask = call.ask
        place = id(ask)
        known = self.known.get(place)
        if isinstance(ask, Chat) and (known is None or known[3] is not told):
            # Called before another chat can have this address.
            reference = ref(ask, lambda _: self.known.pop(place, None))
            self.known[place] = (reference, call.route, stamp, told, digest)


def asked_of(ask: Ask) -> JSON:
    """A chat or a completion as what JSON can hold: every field that reaches the upstream."""
    if isinstance(ask, Chat):
        messages = list(map(spelled if told_in_parts(ask.messages) else PLAIN, ask.messages))
        choice = ask.tool_choice
        # Not the client's own last question: it is among the messages, as the upstream will read it.
        return [messages, ask.tools, (choice.mode, choice.names), ask.parallel_tool_calls, ask.format, ask.options,
                ask.think, ask.logprobs, ask.n]  # fmt: skip
    if isinstance(ask, Complete) and ask.images:
        pictures = tuple(Image(digest(one.base64)) for one in ask.images)
        return replace(ask, images=pictures)
    return ask


def told_in_parts(messages: Sequence[Message]) -> bool:
    """Whether there is more to them than JSON can tell of them as they are."""
    return any(map(PICTURES, messages)) or any(map(CALLS, messages))


def spelled(message: Message) -> JSON:
    """Pictures by digest, and arguments as values: how their JSON was spelled does not count."""
    calls = [{"id": one.id, "name": one.name, "arguments": arguments(one.arguments)} for one in message.tool_calls]
    return [*PLAIN(message), calls, [digest(one.base64) for one in message.images]]


def arguments(text: str) -> JSON:
    """As they are spelled where that is not JSON, or where its values are not the same as the text."""
    if LONG.search(text) or text.count("{") + text.count("[") > DEEP:
        return [text]
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


def label_of(call: Call, model: str, tenant: str, told: bytes) -> bytes:
    """What an entry can be found by: a line of facts, and the question as JSON, whole or only its words."""
    if len(told) > MOST:
        told = orjson.dumps([call.route, "", ["".join(words_of(call.ask))[:MOST]]])
    return head_of(model, tenant) + told


@lru_cache(1024)
def head_of(model: str, tenant: str) -> bytes:
    return orjson.dumps({"model": model, "tenant": tenant}) + b"\n"


def facts_of(label: bytes) -> dict[str, JSON]:
    try:
        facts = orjson.loads(label.partition(b"\n")[0])
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def words_in(label: bytes) -> str:
    """The words that were asked."""
    try:
        _, _, asked = orjson.loads(label.partition(b"\n")[2])
    except (ValueError, TypeError):
        return ""
    return "\n".join(strings(written(asked), ""))


def written(asked: JSON) -> JSON:
    """The parts of a question that somebody wrote: messages, tools and formats; or prompts."""
    if isinstance(asked, list) and len(asked) == CHAT_PARTS:
        return [[[text, thinking, *calls[:1]] for _, text, thinking, _, _, *calls in asked[0]], asked[1], asked[4]]
    if isinstance(asked, dict):
        return [asked.get(name) for name in ("system", "prompts", "suffix", "format")]
    return asked


def strings(value: JSON, name: str) -> Iterator[str]:
    """Every text in a question that somebody wrote; not names of roles, functions or fields."""
    if isinstance(value, str):
        if name not in WORDLESS:
            yield value
    elif isinstance(value, list):
        for one in value:
            yield from strings(one, name)
    elif isinstance(value, dict):
        for key, one in value.items():
            # Inside of these the names are the caller's own.
            yield from strings(one, ANY if name == ANY or key in ("arguments", "parameters", "schema") else key)


def words_of(ask: Ask) -> Iterator[str]:
    if isinstance(ask, Chat):
        yield from (one.text for one in ask.messages)
    elif isinstance(ask, Complete):
        yield from (ask.system, *ask.prompts, ask.suffix)
    else:
        yield from ask.inputs
