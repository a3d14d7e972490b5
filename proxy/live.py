"""The running pipeline, and how a new one takes its place without dropping a call."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Generic, TypeVar

from aiohttp import web

from proxy.background import Background
from proxy.errors import ConfigError, NotFound, WrongMethod
from proxy.types import Route

PROBES = frozenset({"/healthz", "/readyz"})
"""Paths of health probes.  Orchestrators request them directly, without the base path of a gateway."""

Handle = Callable[..., Awaitable[web.StreamResponse]]


class Router:
    """Finds the route of a path: constant paths by one look-up, those with `{names}` by aiohttp's dispatcher."""

    def __init__(self, routes: Iterable[Route], base: str = "") -> None:
        """base: the prefix of every route's path; health probes are also answered without it.

        Raises ConfigError if two routes have the same method and path.
        """
        given = tuple(routes)
        bare = [route for route in given if route.path in PROBES] if base else []
        bare += [replace(route, path=base) for route in given if route.path == "/"] if base else []
        self.routes = (*(replace(route, path=base + route.path) for route in given), *bare)
        self.exact = {(route.method, route.path): route for route in self.routes if "{" not in route.path}
        self.methods: dict[str, set[str]] = {}
        self.patterns = web.UrlDispatcher()
        self.by_handler: dict[Handle, Route] = {}
        doubled = [key for key, count in Counter((one.method, one.path) for one in self.routes).items() if count > 1]
        if doubled:
            raise ConfigError([f"two endpoints are mounted at {method} {path}" for method, path in doubled])
        for route in self.routes:
            if "{" in route.path:
                handle = partial(route.handle)  # a new object for each route, because two may share a function
                self.patterns.add_route(route.method, route.path, handle)
                self.by_handler[handle] = route
            else:
                self.methods.setdefault(route.path, set()).add(route.method)

    async def find(self, request: web.BaseRequest) -> tuple[Route, Mapping[str, str]]:
        """The route of a request, and the values of the `{names}` in its path.  Raises NotFound or WrongMethod."""
        if route := self.exact.get((request.method, request.path)):
            return route, {}
        match = await self.patterns.resolve(request)  # type: ignore[arg-type]  # needs no more than a BaseRequest
        if any("\0" in value for value in match.values()):  # not every database accepts this character
            raise NotFound("There is no such thing.", code="not_found")
        if match.http_exception is None:
            return self.by_handler[match.handler], match
        allowed = frozenset(self.methods.get(request.path, ()))
        if isinstance(match.http_exception, web.HTTPMethodNotAllowed):
            allowed |= match.http_exception.allowed_methods
        if allowed:
            raise WrongMethod(
                f"{request.method} is not allowed for {request.path}; use {' or '.join(sorted(allowed))}", allowed
            )
        raise NotFound(f"Unknown request URL: {request.method} {request.path}", code="unknown_url")


Value = TypeVar("Value")


class Pipeline(Generic[Value]):
    """A built configuration: its routes, a value for the edge, and everything it opened.

    A reload replaces it as a whole.  `with pipeline:` counts a call that runs in it.
    """

    def __init__(self, router: Router, value: Value, opened: AsyncExitStack) -> None:
        self.router = router
        self.value = value
        self.opened = opened
        self.calls = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def __enter__(self) -> Pipeline[Value]:
        self.calls += 1
        self.idle.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self.calls -= 1
        if not self.calls:
            self.idle.set()

    async def retire(self) -> None:
        """Wait for the last call, then close what was opened."""
        try:
            await self.idle.wait()
        finally:
            await self.opened.aclose()


class Live(Generic[Value]):
    """Holds the newest pipeline; calls that began in an older one finish there."""

    def __init__(self, pipeline: Pipeline[Value], background: Background) -> None:
        self.pipeline = pipeline
        self.background = background
        self.retiring: set[Pipeline[Value]] = set()

    def replace(self, pipeline: Pipeline[Value]) -> None:
        old, self.pipeline = self.pipeline, pipeline
        self.retiring.add(old)
        retired = self.background.start(old.retire(), "retiring a pipeline")
        retired.add_done_callback(lambda _: self.retiring.discard(old))

    @property
    def calls(self) -> int:
        """The number of running calls, in all pipelines."""
        return self.pipeline.calls + sum(one.calls for one in self.retiring)

    async def wait_until_idle(self) -> None:
        """Wait until no call is running."""
        while self.calls:
            for one in (self.pipeline, *self.retiring):
                await one.idle.wait()
