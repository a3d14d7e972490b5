"""Replaces references to items by the items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from plugins.stored.store import Store
from proxy.errors import BadCall, NotFound
from proxy.wire.openai_items import REFERENCE, Item, response_of
from proxy.wire.openai_items_in import distinct

MOST: Final = 1000
"""Maximum number of responses to whose items a call may refer."""


async def resolved(store: Store, owner: str, items: Sequence[Item]) -> Sequence[Item]:
    """The items with references resolved, to responses' items or those of other features; the same object if none.

    Raises NotFound for the first reference to something not stored or another caller's, and BadCall for too many.
    """
    wanted = {one["id"]: response_of(one["id"]) for one in items if one["type"] == REFERENCE}
    if not wanted:
        return items
    responses = {one for one in wanted.values() if one is not None}
    if len(responses) > MOST:
        message = f"Invalid 'input': it refers to items of more than {MOST} responses."
        raise BadCall(message, param="input", code="array_above_max_length")
    found = {item["id"]: item for item in await store.parts(owner, responses) if item["id"] in wanted}
    for finder in store.host.item_finders:
        if missing := wanted.keys() - found.keys():
            found |= await finder(owner, missing)
    for index, one in enumerate(items):
        if one["type"] == REFERENCE and one["id"] not in found:
            raise unknown(one["id"], f"input[{index}].id")
    return distinct([found[one["id"]] if one["type"] == REFERENCE else one for one in items])


def unknown(id: str, at: str) -> NotFound:
    message = (
        f"Item with id '{id[:100]}' not found: it belongs to nothing that is stored for you. "
        "Send the item itself, or keep responses with 'store': true."
    )
    return NotFound(message, param=at, code="item_not_found")
