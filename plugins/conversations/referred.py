"""Looks up items of a caller's conversations for requests that reference them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sqlalchemy import func, select

from plugins.conversations.items import items_of_message, place_of
from plugins.conversations.messages import stored_message_of
from plugins.conversations.store import Store
from plugins.conversations.tables import MESSAGES, TALKS
from proxy.errors import BadCall
from proxy.wire.openai_items import Item

MOST: Final = 64 * 1024 * 1024
"""Maximum characters of the messages that one request may reference."""


async def items_of(store: Store, owner: str, ids: Collection[str]) -> dict[str, Item]:
    """The owner's items among these ids, by id.  Raises BadCall if their messages are too large."""
    places = {place[0] for id in ids if (place := place_of(id)) is not None}
    if not places:
        return {}
    theirs = MESSAGES.c.talk.in_(select(TALKS.c.number).where(TALKS.c.owner == owner))
    which = (MESSAGES.c.owner == owner) & MESSAGES.c.id.in_(places) & theirs
    size = func.sum(func.length(MESSAGES.c.text) + func.length(MESSAGES.c.body) + func.length(MESSAGES.c["items"]))
    async with store.database.reading() as connection:
        if ((await connection.execute(select(size).where(which))).scalar() or 0) > MOST:
            message = f"The items that are referred to belong to messages with more than {MOST} characters."
            raise BadCall(message, param="input", code="input_too_large")
        rows = (await connection.execute(select(MESSAGES).where(which))).mappings().all()
    parts = (one for row in rows for one in items_of_message(stored_message_of({**row})))
    return {one["id"]: one for one in parts if one is not None and one["id"] in ids}
