"""Plugins for tests: they refuse calls, fail to open, yield to other tasks, change the model, or serve routes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Literal

from aiohttp import web

from proxy.config import Strict
from proxy.errors import Busy, ConfigError, Denied, ProxyError, TooMany
from proxy.host import Host
from proxy.types import Call, Chat, Events, Handler, Reply, Route

KINDS: dict[str, type[ProxyError]] = {"too_many": TooMany, "denied": Denied, "busy": Busy}


class Refusing:
    """Raises the configured error for every call."""

    class Settings(Strict):
        kind: Literal["too_many", "denied", "busy", "fault"]
        """Which error; `fault` is an unexpected exception."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        if error := KINDS.get(self.settings.kind):
            raise error("not now", code="told_to", wait=7)
        raise ZeroDivisionError("a secret of the server")


class Shut:
    """Cannot be opened, as if its store were unavailable."""

    class Settings(Strict):
        pass

    def __init__(self, settings: Settings, host: Host) -> None:
        pass

    async def __aenter__(self) -> None:
        raise ConfigError(["its store cannot be opened"])

    async def __aexit__(self, *_: object) -> None:
        pass

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        return await call_next(call)


class Pausing:
    """Passes every event on, and lets other tasks run after each."""

    class Settings(Strict):
        pass

    def __init__(self, settings: Settings, host: Host) -> None:
        pass

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        return (await call_next(call)).through(self.pausing)

    async def pausing(self, source: Events) -> Events:
        async for event in source:
            yield event
            for _ in range(5):
                await asyncio.sleep(0)


class Turned:
    """Sends the call to another model if the last message is `turn to MODEL`."""

    class Settings(Strict):
        pass

    def __init__(self, settings: Settings, host: Host) -> None:
        pass

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        if isinstance(call.ask, Chat) and call.ask.messages[-1].text.startswith("turn to "):
            call = call.but(model=call.ask.messages[-1].text.removeprefix("turn to "))
        return await call_next(call)


class Desk:
    """A page for users and one for admins."""

    class Settings(Strict):
        pass

    def __init__(self, settings: Settings, host: Host) -> None:
        pass

    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/desk/user", self.page, "user")
        yield Route("GET", "/desk/admin", self.page)
        yield Route("GET", "/desk/{name}/public", self.named, "public")
        yield Route("GET", "/desk/half", self.half, "public")

    async def page(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="come in")

    async def half(self, request: web.BaseRequest) -> web.StreamResponse:
        """Fails after writing five of a hundred bytes."""
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"begun")
        raise RuntimeError("and that is all")

    async def named(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        if name == "headers":
            return web.json_response([one.lower() for one in request.headers])
        return web.Response(text=name)
