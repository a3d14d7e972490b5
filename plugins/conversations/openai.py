"""OpenAI's conversations API, over the same data.  Source: OpenAI's API reference, "Conversations"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from aiohttp import web
from pydantic import Field
from sqlalchemy import ColumnElement, delete, select, update

from plugins.conversations.api import answer
from plugins.conversations.conversation import PREFIX, Conversation, unknown
from plugins.conversations.forms import LIMITS, Metadata, check_letters
from plugins.conversations.items import items_of_message, of_items, place_of, shown, without
from plugins.conversations.messages import StoredMessage, row_of, stored_message_of
from plugins.conversations.reading import ConversationReader, page
from plugins.conversations.referred import items_of
from plugins.conversations.removing import remove
from plugins.conversations.store import Store, in_conversation, owned, written
from plugins.conversations.tables import MESSAGES, TALKS
from plugins.conversations.turns import TurnTaker
from proxy.config import Strict
from proxy.errors import NotFound
from proxy.host import Host
from proxy.types import JSON, Route
from proxy.wire.ids import new_id
from proxy.wire.openai_attached import of_items as attached
from proxy.wire.openai_items import Include, Item, content_parts, with_pictures
from proxy.wire.openai_items_in import items as read_items

PATH: Final = "/v1/conversations"
MOST: Final = 20
"""Maximum items in one request, as at OpenAI."""
PICTURES: Final = "message.input_image.image_url"
LOGPROBS: Final = "message.output_text.logprobs"
RESULTS: Final = "file_search_call.results"
REFERENCE: Final = "item_reference"


class Create(Strict):
    items: Annotated[list[JSON], Field(max_length=MOST)] | None = None
    metadata: Metadata | None = None


class Update(Strict):
    metadata: Metadata | None


class Items(Strict):
    items: Annotated[list[JSON], Field(min_length=1, max_length=MOST)]


class Including(Strict):
    include: tuple[Include, ...] = ()

    def shown(self, item: Item) -> Item:
        return shown(item, PICTURES in self.include, LOGPROBS in self.include, RESULTS in self.include)


class Listing(Including):
    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


@dataclass(frozen=True, slots=True)
class OpenAI:
    store: Store
    taking: TurnTaker
    host: Host

    def routes(self) -> Iterable[Route]:
        for method, path, handle in (
            ("POST", "", self.create),
            ("GET", "/{id}", self.get),
            ("POST", "/{id}", self.update),
            ("DELETE", "/{id}", self.delete),
            ("POST", "/{id}/items", self.add),
            ("GET", "/{id}/items", self.items),
            ("GET", "/{id}/items/{item}", self.item),
            ("DELETE", "/{id}/items/{item}", self.remove),
        ):
            yield Route(method, PATH + path, handle, "user")

    def owner(self, request: web.BaseRequest) -> str:
        return self.host.requests.caller(request).name

    async def create(self, request: web.BaseRequest) -> web.StreamResponse:
        form = await self.host.requests.form(request, Create)
        stored_messages = await self.said(request, form.items or [])
        columns = {"metadata": written(form.metadata)}
        return answer(
            conversation_as_json(
                await self.store.create(self.owner(request), new_id(PREFIX), stored_messages, **columns)
            )
        )

    async def get(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        return answer(conversation_as_json(await self.store.talk(self.owner(request), id)))

    async def update(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        form = await self.host.requests.form(request, Update)
        return answer(
            conversation_as_json(await self.store.change(self.owner(request), id, {"metadata": written(form.metadata)}))
        )

    async def delete(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        if not await remove(self.store, owned(self.owner(request), id)):
            raise unknown(id)
        return answer({"id": id, "object": "conversation.deleted", "deleted": True})

    async def add(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        form, asked = await self.host.requests.form(request, Items), self.host.requests.query(request, Including)
        stored_messages = await self.said(request, form.items)
        async with self.taking.held(self.owner(request), id) as turn, self.store.database.writing() as connection:
            added = await self.store.append(connection, turn.talk, stored_messages)
        return answer(page(listed(added, asked), False))

    async def said(self, request: web.BaseRequest, given: Sequence[JSON]) -> list[StoredMessage]:
        """The messages that a request's items represent.  Raises BadCall naming the field."""
        stored_messages = of_items(await self.read(request, given))
        check_letters((one.message for one in stored_messages), "items")
        return stored_messages

    async def read(self, request: web.BaseRequest, given: Sequence[JSON]) -> list[Item]:
        """A request's items, with references, files and links resolved.  Raises BadCall naming the field."""
        files = attached({"items": given}, "items")
        whole = await self.referred(self.owner(request), given)
        found = read_items(whole, "items", LIMITS)
        if files:  # only after everything else has been validated
            await self.host.requests.files(request, files)
            found = read_items(whole, "items", LIMITS)
        links = {link: f"items[{index}].content" for index, one in enumerate(found) for link in links_of(one)}
        return with_pictures(found, await self.host.requests.pictures(links, "items"))

    async def referred(self, owner: str, given: Sequence[JSON]) -> list[JSON]:
        """The items, with references replaced by items of the owner's conversations.  Raises NotFound."""
        wanted = {
            index: str(one.get("id"))
            for index, one in enumerate(given)
            if isinstance(one, dict) and (one.get("type") == REFERENCE or set(one) == {"id"})
        }
        there, found = await items_of(self.store, owner, set(wanted.values())), list(given)
        for index, id in wanted.items():
            if id not in there:
                message = f"No conversation of yours has an item '{id[:200]}'."
                raise NotFound(message, param=f"items[{index}].id", code="item_not_found")
            found[index] = there[id]
        return found

    async def items(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        asked = self.host.requests.query(request, Listing)
        talk = await self.store.talk(self.owner(request), id)
        found = listed(await self.around(talk, asked), asked)
        if asked.order == "desc":
            found.reverse()
        if asked.after is not None:
            found = behind(found, asked.after, asked.order)
        return answer(page(found[: asked.limit], len(found) > asked.limit))

    async def around(self, talk: Conversation, asked: Listing) -> list[StoredMessage]:
        """Enough messages for a page of items, oldest first, including the one to which the item `after` belongs."""
        at, conditions = MESSAGES.c.position, [in_conversation(talk)]
        if asked.after is not None:
            said, _ = await self.part(talk, asked.after, "after")
            conditions.append(at >= said.position if asked.order == "asc" else at <= said.position)
        order: ColumnElement[Any] = at if asked.order == "asc" else at.desc()
        query = select(MESSAGES).where(*conditions).order_by(order).limit(asked.limit + 2)
        stored_messages = [stored_message_of(row) for row in await ConversationReader(self.store).rows(query)]
        return sorted(stored_messages, key=lambda one: one.position)

    async def part(self, talk: Conversation, id: str, param: str = "item_id") -> tuple[StoredMessage, int]:
        """The message of an item, and the item's index in it.  Raises NotFound.

        A deleted item is found only as `after`.
        """
        if (place := place_of(id)) is not None:
            rows = await ConversationReader(self.store).rows(
                select(MESSAGES).where(in_conversation(talk), MESSAGES.c.id == place[0])
            )
            if rows and place[1] < len(parts := items_of_message(said := stored_message_of(rows[0]))):
                part = parts[place[1]]
                if param == "after" or (part is not None and part["id"] == id):
                    return said, place[1]
        message = f"The conversation '{talk.id}' has no item '{id[:200]}'."
        raise NotFound(message, param=param, code="item_not_found")

    async def item(self, request: web.BaseRequest, id: str, item: str) -> web.StreamResponse:
        asked = self.host.requests.query(request, Including)
        said, part = await self.part(await self.store.talk(self.owner(request), id), item)
        found = items_of_message(said)[part]
        assert found is not None  # noqa: S101  (`part` has checked it)
        return answer(asked.shown(found))

    async def remove(self, request: web.BaseRequest, id: str, item: str) -> web.StreamResponse:
        async with self.taking.held(self.owner(request), id) as turn:
            said, part = await self.part(turn.talk, item)
            await self.replaced(turn.talk, said, without(said, part))
        return answer(conversation_as_json(turn.talk))

    async def replaced(self, talk: Conversation, old: StoredMessage, new: StoredMessage | None) -> None:
        which = in_conversation(talk) & (MESSAGES.c.id == old.id)
        async with self.store.database.writing() as connection:
            if new is not None:
                changed = {name: value for name, value in row_of(new).items() if name in ("text", "body", "items")}
                await connection.execute(update(MESSAGES).where(which).values(changed))
                return
            await connection.execute(delete(MESSAGES).where(which))
            fewer = update(TALKS).where(owned(talk.owner, talk.id)).values(messages=TALKS.c.messages - 1)
            await connection.execute(fewer)


def links_of(item: Item) -> Iterator[str]:
    for part in content_parts(item):
        if (url := str(part.get("image_url") or "")).startswith(("http://", "https://")):
            yield url


def conversation_as_json(talk: Conversation) -> dict[str, JSON]:
    return {
        "id": talk.id,
        "object": "conversation",
        "created_at": talk.created // 10**6,
        "metadata": dict(talk.metadata),
    }


def listed(stored_messages: Iterable[StoredMessage], asked: Including) -> list[Item]:
    return [asked.shown(one) for said in stored_messages for one in items_of_message(said) if one is not None]


def behind(found: Sequence[Item], after: str, order: str) -> list[Item]:
    """The items after the one with this id, which may have been deleted."""
    place = place_of(after)
    for index, one in enumerate(found):
        here = place_of(one["id"])
        if place is None or here is None or here[0] != place[0]:
            return list(found[index:])
        if here[1] > place[1] if order == "asc" else here[1] < place[1]:
            return list(found[index:])
    return []
