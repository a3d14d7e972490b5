"""The endpoints of conversations: callers see and change only their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson
from aiohttp import web
from msgspec.structs import replace

from plugins.conversations import export, reading
from plugins.conversations.conversation import FIELD, HEADER, PREFIX, Conversation, unknown
from plugins.conversations.copying import copied
from plugins.conversations.forms import (
    Add,
    Change,
    Create,
    Fork,
    Format,
    Generate,
    MessagePage,
    Page,
    Query,
    pictured,
    read_messages,
)
from plugins.conversations.items import another
from plugins.conversations.messages import StoredMessage, message_as_json
from plugins.conversations.reading import DAY, ConversationReader
from plugins.conversations.recording import title_of
from plugins.conversations.removing import remove
from plugins.conversations.store import Store, owned, written
from plugins.conversations.turns import TurnTaker
from proxy.errors import ProxyError
from proxy.host import Host
from proxy.types import JSON, Call, Chat, Message, Route
from proxy.wire.ids import new_id

DAYS: Final = 30
PATH: Final = "/api/conversations"


@dataclass(frozen=True, slots=True)
class Api:
    store: Store
    taking: TurnTaker
    host: Host

    @property
    def reading(self) -> ConversationReader:
        return ConversationReader(self.store)

    def routes(self) -> Iterable[Route]:
        for method, path, handle in (
            ("POST", "", self.create),
            ("GET", "", self.list),
            ("GET", "/search", self.search),
            ("GET", "/statistics", self.statistics),
            ("GET", "/{id}", self.get),
            ("PUT", "/{id}", self.change),
            ("DELETE", "/{id}", self.delete),
            ("GET", "/{id}/messages", self.messages),
            ("POST", "/{id}/messages", self.add),
            ("POST", "/{id}/generate", self.generate),
            ("POST", "/{id}/fork", self.fork),
            ("GET", "/{id}/export", self.export),
        ):
            yield Route(method, PATH + path, handle, "user")

    def owner(self, request: web.BaseRequest) -> str:
        return self.host.requests.caller(request).name

    async def create(self, request: web.BaseRequest) -> web.StreamResponse:
        form, owner = await self.host.requests.form(request, Create), self.owner(request)
        new = await pictured(self.host.requests, read_messages(form.messages or []))
        columns = {"model": form.model or "", "system": form.system_prompt or "", "metadata": written(form.metadata)}
        title = form.title or title_of(new)
        columns |= {"title": title, "titled": "caller" if form.title else "first"}
        talk = await self.store.create(owner, form.id or new_id(PREFIX), [StoredMessage(one) for one in new], **columns)
        return answer(talk.as_json(), 201)

    async def list(self, request: web.BaseRequest) -> web.StreamResponse:
        found = await self.reading.talks(self.owner(request), self.host.requests.query(request, Page))
        return answer(reading.page([one.as_json() for one in found.found], found.more))

    async def search(self, request: web.BaseRequest) -> web.StreamResponse:
        found = await self.reading.search(self.owner(request), self.host.requests.query(request, Query))
        data = [
            {
                "id": one.said.id,
                "conversation": {"id": one.talk, "title": one.title},
                "role": one.said.message.role,
                "position": one.said.position,
                "created_at": one.said.at // 10**6,
                "snippet": one.snippet,
            }
            for one in found.found
        ]
        return answer(reading.page(data, found.more))

    async def statistics(self, request: web.BaseRequest) -> web.StreamResponse:
        now = self.store.now()
        return answer(await self.reading.statistics(self.owner(request), now - now % DAY - (DAYS - 1) * DAY))

    async def get(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        asked = self.host.requests.query(request, MessagePage)
        talk = await self.store.talk(self.owner(request), id)
        found = await self.reading.messages(talk, asked)
        summaries = await self.reading.summaries(talk)
        told_of = {"messages": [message_as_json(one) for one in found.found], "has_more": found.more}
        return answer({**talk.as_json(), **told_of, "summaries": [export.summary_as_json(one) for one in summaries]})

    async def messages(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        asked = self.host.requests.query(request, MessagePage)
        found = await self.reading.messages(await self.store.talk(self.owner(request), id), asked)
        return answer(reading.page([message_as_json(one) for one in found.found], found.more))

    async def change(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        form, owner = await self.host.requests.form(request, Change), self.owner(request)
        columns: dict[str, Any] = form.columns()
        if "title" in columns:
            columns["titled"] = "caller"
        if "metadata" in form.model_fields_set:
            columns["metadata"] = written(form.metadata)
        if not columns:
            return answer((await self.store.talk(owner, id)).as_json())
        return answer((await self.store.change(owner, id, columns)).as_json())

    async def delete(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        if not await remove(self.store, owned(self.owner(request), id)):
            raise unknown(id)
        return answer({"id": id, "object": "conversation.deleted", "deleted": True})

    async def add(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        """Append messages, once no call of the conversation is in progress, so that they stay together."""
        form = await self.host.requests.form(request, Add)
        new = await pictured(self.host.requests, form.read(), "" if form.messages is None else "messages")
        async with self.taking.held(self.owner(request), id) as turn, self.store.database.writing() as connection:
            title = {} if turn.talk.title else {"title": title_of(new), "titled": "first"}
            added = await self.store.append(connection, turn.talk, [StoredMessage(one) for one in new], **title)
        data = [message_as_json(one) for one in added]
        return answer(data[0] if len(data) == 1 else reading.page(data, False), 201)

    async def generate(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        """Answer through the chat chain, like any call that names the conversation."""
        form, owner = await self.host.requests.form(request, Generate), self.owner(request)
        talk, new = await self.store.talk(owner, id), await pictured(self.host.requests, form.new(), "message")
        call = await self.host.chat(request, form.body(talk.model))
        try:
            return await self.host.answer(request, going_on(call, id, new))
        except ProxyError as error:
            error.renamed("message" if error.param == "messages" else error.param)
            raise

    async def fork(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        form, owner = await self.host.requests.form(request, Fork), self.owner(request)
        talk = await self.store.talk(owner, id)
        last = None if form.message is None else (await self.reading.position(talk, form.message, "message")).position
        made = await self.forked(talk, form, last)
        return answer(made.as_json(), 201)

    async def forked(self, talk: Conversation, form: Fork, last: int | None) -> Conversation:
        async with self.store.database.reading() as connection:
            stored_messages = await self.store.turns(connection, talk)
        some = [another(one) for one in stored_messages if last is None or one.position <= last]
        columns = {"model": talk.model, "system": talk.system, "metadata": written(talk.metadata), "parent": talk.id}
        title = form.title or talk.title
        columns |= {"title": title, "titled": "caller" if form.title else talk.titled}
        return await copied(self.store, talk.owner, form.id or new_id(PREFIX), some, **columns)

    async def export(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        form = self.host.requests.query(request, Format).format
        talk = await self.store.talk(self.owner(request), id)
        async with self.store.database.reading() as connection:
            stored_messages = await self.store.turns(connection, talk)
        ending = "json" if form == "json" else "md"
        name = {"Content-Disposition": f'attachment; filename="{talk.id.replace(":", "_")}.{ending}"'}
        if form == "json":
            body = orjson.dumps(export.document(talk, stored_messages, await self.reading.summaries(talk)))
            return web.Response(body=body, content_type="application/json", headers=name)
        return web.Response(
            text=export.markdown(talk, stored_messages), content_type="text/markdown", charset="utf-8", headers=name
        )


def going_on(call: Call, id: str, new: Sequence[Message]) -> Call:
    """The call with only the new messages, in the conversation of the path; a conversation header is ignored."""
    chat = cast(Chat, call.ask)
    ask = replace(chat, messages=tuple(new), question=new[-1].text if new else "")
    headers = {name: value for name, value in call.headers.items() if name != HEADER}
    return call.but(ask=ask, extra={**call.extra, FIELD: id}, headers=headers)


def answer(body: JSON, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")
