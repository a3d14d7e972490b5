"""Copies a conversation in small transactions, so that others do not wait; it is visible only when complete."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import exc, update

from plugins.conversations.conversation import Conversation, Exists
from plugins.conversations.messages import StoredMessage
from plugins.conversations.removing import NOBODY, PAUSE, emptied, together
from plugins.conversations.store import Store
from plugins.conversations.tables import TALKS
from proxy.errors import Busy
from proxy.wire.ids import new_id


async def copied(
    store: Store, owner: str, id: str, stored_messages: Sequence[StoredMessage], **columns: Any
) -> Conversation:
    """A new conversation with these messages.  Raises Exists, BadCall."""
    hidden = await begun(store, owner, id, columns)
    try:
        while stored_messages:
            some = together(len(one.message.text) for one in stored_messages)
            async with store.database.writing() as connection:
                await store.append(connection, hidden, stored_messages[:some], whose=owner)
            stored_messages = stored_messages[some:]
            await store.host.clock.sleep(PAUSE)
        return await shown(store, hidden, owner, id)
    except BaseException:
        with suppress(Busy):  # a later clean-up deletes it
            store.host.background.start(emptied(store, [hidden.number]), "deleting a copy that was not finished")
        raise


async def begun(store: Store, owner: str, id: str, columns: dict[str, Any]) -> Conversation:
    """Create the hidden conversation that the messages are copied to.  Raises Exists, BadCall."""
    name = new_id("copy_")
    async with store.database.writing() as connection:
        await store.check_room(connection, owner)
        if await store.found(connection, owner, id) is not None:
            raise Exists(id)
        await store.made(connection, NOBODY, name, **columns)
        hidden = await store.found(connection, NOBODY, name)
    assert hidden is not None  # noqa: S101  (its name is new)
    return hidden


async def shown(store: Store, hidden: Conversation, owner: str, id: str) -> Conversation:
    """Make a finished copy visible, by giving it its owner and id."""
    which = update(TALKS).where(TALKS.c.number == hidden.number)
    try:
        async with store.database.writing() as connection:
            await store.check_room(connection, owner)
            await connection.execute(which.values(owner=owner, id=id))
    except exc.IntegrityError:
        raise Exists(id) from None
    return await store.talk(owner, id)
