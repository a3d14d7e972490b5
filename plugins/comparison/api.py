"""The endpoints of comparisons: callers see and change only their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import orjson
from aiohttp import web

from plugins.comparison.figures import FiguresReader
from plugins.comparison.forms import WORTH, Compare, Figures, Judge, Page, Ranking, Rate, answered_by, asked_of
from plugins.comparison.judging import Judging
from plugins.comparison.results import LETTERS, PREFIX, CallOutcome, Compared, clean
from plugins.comparison.round import ROUTE, AnswerPiece, CallEndCollector, Round, calls_of
from plugins.comparison.store import Store
from proxy.announcements import Rated
from proxy.errors import BadCall, Busy, Denied, ProxyError, TooLarge
from proxy.host import Host
from proxy.types import JSON, Call, Caller, Chat, Route, unheard
from proxy.wire import sse
from proxy.wire.ids import timely_id

PATH: Final = "/api/comparisons"


@dataclass(frozen=True, slots=True)
class Asked:
    """A validated request for a comparison.  calls: in the order in which they are started and reported."""

    compared: Compared
    calls: list[Call]
    judge: Judge | None
    caller: Caller

    @property
    def names(self) -> list[str]:
        return list(LETTERS[: len(self.calls)]) if self.compared.blind else [one.model for one in self.calls]


class Api:
    def __init__(self, store: Store, host: Host, at_once: int) -> None:
        self.store = store
        self.host = host
        self.at_once = at_once
        self.ends = CallEndCollector(host)
        self.judging = Judging(host, at_once)
        self.reading = FiguresReader(store)

    def routes(self) -> Iterable[Route]:
        yield Route("POST", "/api/ollama/compare", self.compare, "user")
        for method, path, handle in (
            ("GET", "", self.list),
            ("GET", "/ranking", self.ranking),
            ("GET", "/statistics", self.statistics),
            ("GET", "/{id}", self.get),
            ("DELETE", "/{id}", self.delete),
            ("POST", "/{id}/rate", self.rate),
            ("POST", "/{id}/judge", self.judge),
        ):
            yield Route(method, PATH + path, handle, "user")

    def owner(self, request: web.BaseRequest) -> str:
        return self.host.requests.caller(request).name

    # --- comparing ---

    async def compare(self, request: web.BaseRequest) -> web.StreamResponse:
        form, caller = await self.host.requests.form(request, Compare), self.host.requests.caller(request)
        check_route(caller)
        try:
            call = await self.read(request, form)
        except BadCall as error:
            raise form.nothing(error) from None
        asked = self.asked(form, call, caller)
        await self.store.ready()
        if form.stream:
            return await self.host.stream(request, lambda progress: self.frames(asked, progress))
        last: dict[str, JSON] = {}
        async with aclosing(self.events(asked, unheard)) as happenings:
            async for _, told in happenings:
                last = told
        return answer(last)

    async def read(self, request: web.BaseRequest, form: Compare) -> Call:
        """The call to the first model.  Raises BadCall."""
        body = form.body()
        call = await self.host.chat(request, body)
        # Without messages, each model must have its own, such as from a template; `chat` above checks only the first.
        for model in form.models[1:] if body["messages"] == [] else ():
            await self.host.chat(request, {**body, "model": model})
        return call

    def asked(self, form: Compare, call: Call, caller: Caller) -> Asked:
        if not isinstance(call.ask, Chat):
            raise BadCall("Only chats are compared.", code="invalid_value")
        chat = form.led(call.ask)
        kept = asked_of(chat)
        if len(orjson.dumps(kept)) > self.store.most.bytes:
            message = f"The question has more than {self.store.most.bytes} bytes."
            raise TooLarge(message, param="messages" if form.prompt is None else "prompt", code="too_large_to_store")
        models = list(form.models)
        if form.blind:
            models.sort(key=lambda _: self.host.clock.uniform(0, 1))
        id = timely_id(PREFIX)
        calls = calls_of(call.but(ask=chat), id, models, [timely_id("req_") for _ in models])
        prompt = clean(chat.question)
        compared = Compared(id, caller.name, self.store.now(), prompt, kept, form.blind)
        return Asked(compared, calls, form.judge, caller)

    async def frames(self, asked: Asked, progress: Callable[[str], None]) -> AsyncGenerator[bytes, None]:
        async with aclosing(self.events(asked, progress)) as happenings:
            async for name, told in happenings:
                yield sse.event(name, orjson.dumps({"type": name, **told}))

    async def events(
        self, asked: Asked, progress: Callable[[str], None]
    ) -> AsyncGenerator[tuple[str, dict[str, JSON]], None]:
        """The events of a comparison, each with its name; the last is the whole comparison.

        If no model answered, raises the error of the last one.
        """
        names, head = asked.names, asked.compared
        begun = {"comparison_id": head.id, "models": names, "created_at": head.at // 10**6}
        yield "comparison.created", begun
        watched = unheard if head.blind else progress  # they name the models
        calls, heard = [one.but(progress=watched) for one in asked.calls], dict[int, CallOutcome]()
        async with aclosing(Round(self.host, self.ends, calls, asked.caller, self.at_once).steps()) as steps:
            async for step in steps:
                if isinstance(step, AnswerPiece):
                    words = {"delta": step.text} if step.text else {"thinking": step.thinking}
                    yield "result.delta", {"index": step.place, **words}
                    continue
                heard[step.place] = step.heard
                result = step.heard.result().as_json(names[step.place], head.blind)
                yield "result.done", {"index": step.place, "result": result}
        yield "comparison.done", (await self.finished(asked, heard, progress)).as_json()

    async def finished(self, asked: Asked, heard: dict[int, CallOutcome], progress: Callable[[str], None]) -> Compared:
        """Store the comparison, and judge it if requested.  If the database is unavailable, it is returned unsaved."""
        in_order = [heard[place] for place in range(len(asked.calls))]
        errors = [one.error for one in in_order if one.error is not None]
        if len(errors) == len(in_order):
            raise errors[-1]
        compared = asked.compared.but(results=[one.result() for one in in_order])
        try:
            kept = await self.store.add(compared)
        except Busy:
            return compared.but(kept=False)
        # The answers are returned in full, even if they are stored shortened.
        compared = compared.but(number=kept.number)
        if asked.judge is None or len(in_order) - len(errors) < 2:
            return compared
        return await self.judged(compared, asked.judge, asked.caller, progress)

    async def judged(
        self, compared: Compared, judge: Judge, caller: Caller, progress: Callable[[str], None]
    ) -> Compared:
        """The comparison with its judgements; if the judge fails, with the error instead."""
        try:
            judgements = await self.judging.judge(compared, judge, caller, progress)
            return await self.store.judged(compared, judgements)
        except ProxyError as error:
            return compared.but(unjudged=error)

    # --- stored comparisons ---

    async def list(self, request: web.BaseRequest) -> web.StreamResponse:
        found, more = await self.store.page(self.owner(request), self.host.requests.query(request, Page))
        data = [one.as_json(whole=False) for one in found]
        ends = {"first_id": found[0].id if found else None, "last_id": found[-1].id if found else None}
        return answer({"object": "list", "data": data, **ends, "has_more": more})

    async def get(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        compared = await self.store.one(self.owner(request), id)
        return answer({**compared.as_json(), **compared.asked})

    async def delete(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        await self.store.drop(self.owner(request), id)
        return answer({"comparison_id": id, "deleted": True})

    async def rate(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        """Store a vote, or the rating of one answer; both replace earlier ones."""
        form, owner = await self.host.requests.form(request, Rate), self.owner(request)
        compared = await self.store.one(owner, id)
        if form.rating is None:
            return answer((await self.store.vote(compared, form.vote(compared))).as_json(whole=False))
        place = answered_by(compared, form.model or "", "model")
        rated = await self.store.rate(compared, place, WORTH[form.rating])
        result = rated.results[place]
        self.host.announce(Rated(result.request, owner, form.rating, result.cache_key))
        return answer(rated.as_json(whole=False))

    async def judge(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        judge, caller = await self.host.requests.form(request, Judge), self.host.requests.caller(request)
        check_route(caller)
        compared = await self.store.one(caller.name, id)
        judgements = await self.judging.judge(compared, judge, caller, unheard)
        return answer((await self.store.judged(compared, judgements)).as_json(whole=False))

    # --- figures ---

    async def ranking(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = self.host.requests.query(request, Ranking)
        owner = self.host.requests.caller(request).whose(asked.user)
        return answer(await self.reading.ranking(owner, asked))

    async def statistics(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = self.host.requests.query(request, Figures)
        owner = self.host.requests.caller(request).whose(asked.user)
        return answer(await self.reading.statistics(owner, asked))


def check_route(caller: Caller) -> None:
    """Raises Denied if the API key does not allow the route through which the models are called."""
    if caller.routes is not None and ROUTE not in caller.routes:
        raise Denied(f"This API key does not allow the route '{ROUTE}'.", code="route_not_allowed")


def answer(body: JSON) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
