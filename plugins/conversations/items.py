"""Converts messages to OpenAI's items and back.

An item's id contains the id of its message and the item's index in it, so no index of items is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Final

import orjson

from plugins.conversations.messages import PREFIX, StoredMessage, cleaned
from proxy.streams import Choice
from proxy.types import JSON, Message
from proxy.wire import openai_file_search as file_search
from proxy.wire import openai_items
from proxy.wire.ids import new_id
from proxy.wire.openai_items import Item, items_of
from proxy.wire.openai_items_in import PREFIXES
from proxy.wire.openai_response_parts import logprob_of

PART: Final = re.compile(r"[a-z]{2,4}_([0-9a-f]{32})([0-9a-f]{2,4})")
"""A prefix, the hexadecimal id of the message, and the item's index: four digits, or as many as a response used."""
BEFORE: Final = ("reasoning", file_search.CALL)
"""Items that precede the text of the model's message."""
TOGETHER: Final = (*BEFORE, "function_call")


def place_of(id: str) -> tuple[str, int] | None:
    """The message id and the index in an item's id; None if it is not an item's id."""
    found = PART.fullmatch(id)
    return None if found is None else (PREFIX + found[1], int(found[2], 16))


def items_of_message(said: StoredMessage) -> list[Item | None]:
    """The items of a message; a deleted one is None, so that the others keep their index."""
    mine = said.id.removeprefix(PREFIX)
    if said.items:
        parts: list[Item | None] = orjson.loads(said.items)
        return parts
    number = count()
    made = items_of(said.message, lambda prefix: f"{prefix}{mine}{next(number):04x}")
    if said.status == "complete":
        return list(made)
    return [{**one, "status": "incomplete"} if one["type"] == "message" else one for one in made]


def of_items(items: Sequence[Item]) -> list[StoredMessage]:
    """The messages that items represent.  Each keeps its items, which get new ids."""
    return [_said(group) for group in grouped(items)]


def _said(group: Sequence[Item]) -> StoredMessage:
    id = new_id(PREFIX)
    mine = id.removeprefix(PREFIX)
    named = [placed(one, mine, index) for index, one in enumerate(group)]
    return StoredMessage(message_of(named), id, items=orjson.dumps(named).decode())


def placed(item: Item, message: str, index: int) -> Item:
    """The item with an id made of its message and index."""
    return {**item, "id": f"{PREFIXES[item['type']]}{message}{index:04x}"}


def another(said: StoredMessage) -> StoredMessage:
    """A copy of a message, with new ids."""
    if not said.items:
        return replace(said, id="")
    id = new_id(PREFIX)
    mine, parts = id.removeprefix(PREFIX), orjson.loads(said.items)
    named = [one and placed(one, mine, index) for index, one in enumerate(parts)]
    return replace(said, id=id, items=orjson.dumps(named).decode())


def message_of(group: Sequence[Item]) -> Message:
    """The message of a group of items; empty if it has only reasoning or searches."""
    return cleaned(next(iter(openai_items.messages(group)), Message("assistant", "")))


def grouped(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Items grouped by message: consecutive items of one model turn form one message."""
    group: list[Item] = []
    for one in items:
        if group and not (_models(one) and _goes_on(group, one)):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _models(one: Item) -> bool:
    return one["type"] in TOGETHER or one.get("role") == "assistant"


def _goes_on(group: Sequence[Item], one: Item) -> bool:
    """Whether an item continues the group.  The order is: searches and reasoning, then text, then tool calls."""
    if not _models(group[-1]):
        return False
    return one["type"] == "function_call" or all(before["type"] in BEFORE for before in group)


def without(said: StoredMessage, part: int) -> StoredMessage | None:
    """The message without one of its items; None if nothing is left of it."""
    parts = items_of_message(said)
    parts[part] = None
    left = [one for one in parts if one is not None]
    if not left:
        return None
    return replace(said, message=message_of(left), items=orjson.dumps(parts).decode())


def shown(item: Item, pictures: bool, logprobs: bool, results: bool) -> Item:
    """An item as the API returns it.  pictures, logprobs, results: whether to include these, which are large."""
    if item["type"] == file_search.CALL and not results:
        return {**item, "results": None}
    hidden: dict[str, JSON] = {} if pictures else {"image_url": None}
    hidden |= {} if logprobs else {"logprobs": []}
    if not hidden or not (told := openai_items.content_parts(item)):
        return item
    parts = [{**part, **{name: value for name, value in hidden.items() if part.get(name)}} for part in told]
    return {**item, openai_items.PARTS[item["type"]]: parts}


def detailed(said: StoredMessage, choice: Choice) -> StoredMessage:
    """The answer, with items for what a message cannot hold: logprobs, citations and searches."""
    cited = [] if choice.sources is None else file_search.cited(choice.sources.annotations)
    if not (choice.logprobs or cited or choice.searched):
        return said
    said = replace(said, id=said.id or new_id(PREFIX))
    more = {"logprobs": [logprob_of(one) for one in choice.logprobs], "annotations": cited}
    parts = [_with(one, more) for one in items_of_message(said) if one is not None]
    if choice.searched is not None:
        parts.insert(0, file_search.search_item("", choice.searched))
    mine = said.id.removeprefix(PREFIX)
    named = [placed(one, mine, index) for index, one in enumerate(parts)]
    return replace(said, items=orjson.dumps(named).decode())


def _with(item: Item, more: Item) -> Item:
    """A message item with further fields in its content; other items unchanged."""
    return {**item, "content": [{**item["content"][0], **more}]} if item["type"] == "message" else item
