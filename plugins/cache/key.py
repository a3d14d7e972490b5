"""Cache keys: a digest of everything that is sent to the upstream, prefixed by the tenant that shares the answer."""

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
"""Version of keys and entries; changing it invalidates everything cached before."""
MOST: Final = 65_536
"""Maximum bytes of a question that are stored for searches."""
LONG: Final = re.compile(r"[0-9]{16}")
"""So many digits in a row may be rounded by a JSON parser."""
DEEP: Final = 200
"""Maximum nesting of arguments.  orjson writes 254 levels, some of which the surrounding structure takes."""
CHAT_PARTS: Final = 9
PLAIN: Final = attrgetter("role", "text", "thinking", "tool_call_id", "name")
"""A message without images and tool calls, as a tuple: serialising that takes a quarter of the time."""
PICTURES: Final = attrgetter("images")
CALLS: Final = attrgetter("tool_calls")
ANY: Final = "*"
WORDLESS: Final = frozenset({"role", "name", "id", "tool_call_id", "mode", "base64", "url", "type", "names"})


@lru_cache(4096)
def prefix_of(space: str, tenant: str) -> str:
    """The key prefix of a tenant.  space: what the entries are, such as `cache`."""
    return f"{space}:{VERSION}:{hashlib.sha256(tenant.encode()).hexdigest()[:16]}:"


def canonical_form(asked: JSON, route: str, stamp: str) -> bytes:
    """Everything that identifies a call, as canonical JSON: the order of a mapping's names does not matter.

    stamp: of the model; it changes when the model may answer the same question differently.
    """
    return orjson.dumps([route, stamp, asked], asdict, orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


def key_of(told: bytes) -> str:
    """A digest, 32 hexadecimal digits."""
    return hashlib.sha256(told).hexdigest()[:32]


class Keys:
    """Remembers the keys of chats: the edge passes on the same object when the same request is repeated.

    A key is dropped when its chat is garbage-collected, so there are never more than calls in progress and requests
    remembered at the edge.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[ReferenceType[Chat], str, str, bytes, str]] = {}
        """By the chat's `id()`: a weak reference to it, route, stamp, the key's input, and the key."""

    def of(self, call: Call, stamp: str) -> tuple[bytes, str]:
        """The results of `canonical_form` and `key_of` for a call."""
        ask = call.ask
        found = self.known.get(id(ask))
        if found is not None and found[0]() is ask and found[1] == call.route and found[2] == stamp:
            return found[3], found[4]
        told = canonical_form(asked_of(ask), call.route, stamp)
        return told, key_of(told)

    def remember(self, call: Call, stamp: str, told: bytes, digest: str) -> None:
        """Remember the result of `of` for a chat; called on cache hits, where the same request has come before."""
        ask = call.ask
        place = id(ask)
        known = self.known.get(place)
        if isinstance(ask, Chat) and (known is None or known[3] is not told):
            # The callback runs before another chat can get the same `id()`.
            reference = ref(ask, lambda _: self.known.pop(place, None))
            self.known[place] = (reference, call.route, stamp, told, digest)


def asked_of(ask: Ask) -> JSON:
    """All fields that reach the upstream, in a form that can be serialised."""
    if isinstance(ask, Chat):
        messages = list(map(spelled if has_parts(ask.messages) else PLAIN, ask.messages))
        choice = ask.tool_choice
        # `question` is left out: the messages contain it as the upstream will see it.
        return [messages, ask.tools, (choice.mode, choice.names), ask.parallel_tool_calls, ask.format, ask.options,
                ask.think, ask.logprobs, ask.n]  # fmt: skip
    if isinstance(ask, Complete) and ask.images:
        pictures = tuple(Image(digest(one.base64)) for one in ask.images)
        return replace(ask, images=pictures)
    return ask


def has_parts(messages: Sequence[Message]) -> bool:
    """Whether any message has images or tool calls, which need a special form."""
    return any(map(PICTURES, messages)) or any(map(CALLS, messages))


def spelled(message: Message) -> JSON:
    """A message with images as digests and arguments as parsed values, so that their JSON formatting is irrelevant."""
    calls = [{"id": one.id, "name": one.name, "arguments": arguments(one.arguments)} for one in message.tool_calls]
    return [*PLAIN(message), calls, [digest(one.base64) for one in message.images]]


def arguments(text: str) -> JSON:
    """The parsed arguments; the text in a list if it is not JSON, nested too deeply, or could lose digits."""
    if LONG.search(text) or text.count("{") + text.count("[") > DEEP:
        return [text]
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return [text]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def repeats(call: Call) -> bool:
    """Whether the answer is reproducible: an embedding, or a call with a seed or a temperature of 0."""
    options = {} if isinstance(call.ask, Embed) else call.ask.options
    return isinstance(call.ask, Embed) or options.get("seed") is not None or options.get("temperature") == 0


def label_of(call: Call, model: str, tenant: str, told: bytes) -> bytes:
    """An entry's label, for searches: a line of facts, then the question as JSON, or only its text if too long."""
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
    """The text of the question in a label."""
    try:
        _, _, asked = orjson.loads(label.partition(b"\n")[2])
    except (ValueError, TypeError):
        return ""
    return "\n".join(strings(written(asked), ""))


def written(asked: JSON) -> JSON:
    """The parts of a question that contain text: messages, tools and formats; or prompts."""
    if isinstance(asked, list) and len(asked) == CHAT_PARTS:
        return [[[text, thinking, *calls[:1]] for _, text, thinking, _, _, *calls in asked[0]], asked[1], asked[4]]
    if isinstance(asked, dict):
        return [asked.get(name) for name in ("system", "prompts", "suffix", "format")]
    return asked


def strings(value: JSON, name: str) -> Iterator[str]:
    """Every text in a question; not the names of roles, functions or fields."""
    if isinstance(value, str):
        if name not in WORDLESS:
            yield value
    elif isinstance(value, list):
        for one in value:
            yield from strings(one, name)
    elif isinstance(value, dict):
        for key, one in value.items():
            # Inside these, the names are the caller's own.
            yield from strings(one, ANY if name == ANY or key in ("arguments", "parameters", "schema") else key)


def words_of(ask: Ask) -> Iterator[str]:
    if isinstance(ask, Chat):
        yield from (one.text for one in ask.messages)
    elif isinstance(ask, Complete):
        yield from (ask.system, *ask.prompts, ask.suffix)
    else:
        yield from ask.inputs
