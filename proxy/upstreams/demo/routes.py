"""The paths of Ollama's API, and what is done for every request."""

import ipaddress
import platform
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from . import model_endpoints
from .calls import Call
from .creating import create
from .delivery import CutOff, refusal
from .embedding import embed, embeddings
from .generation import chat, generate
from .refusals import Refused

if TYPE_CHECKING:
    from .simulator import Simulator

Endpoint = Callable[[Call], Awaitable[web.StreamResponse]]
LARGEST = 256 * 1024 * 1024
"""Maximum bytes of a body."""
BLOB = "/api/blobs/{digest}"
ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("GET", "/", model_endpoints.root),
    ("GET", "/api/version", model_endpoints.version),
    ("GET", "/api/status", model_endpoints.status),
    ("GET", "/api/tags", model_endpoints.tags),
    ("GET", "/api/ps", model_endpoints.ps),
    ("POST", "/api/show", model_endpoints.show),
    ("POST", "/api/chat", chat),
    ("POST", "/api/generate", generate),
    ("POST", "/api/embed", embed),
    ("POST", "/api/embeddings", embeddings),
    ("POST", "/api/copy", model_endpoints.copy),
    ("DELETE", "/api/delete", model_endpoints.delete),
    ("POST", "/api/pull", model_endpoints.pull),
    ("POST", "/api/create", create),
    ("HEAD", BLOB, model_endpoints.blob),
    ("POST", BLOB, model_endpoints.upload),
)


def application(simulator: "Simulator") -> web.Application:
    app = web.Application(middlewares=[_checked_first(simulator)], client_max_size=LARGEST)
    for method, path, endpoint in ROUTES:
        handler = _handler(simulator, endpoint, path)
        app.router.add_route(method, path, handler)
        if method == "GET":
            app.router.add_route("HEAD", path, handler)
    return app


def _handler(simulator: "Simulator", endpoint: Endpoint, path: str) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        call = Call(simulator, request, b"" if path == BLOB else await request.read())
        simulator.calls[path] += 1
        simulator.seen.append(call.seen())
        simulator.note()
        try:
            return await endpoint(call)
        except Refused as error:
            return refusal(error)

    return handle


def _checked_first(simulator: "Simulator") -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if simulator.strict_hosts and not _is_allowed(request):
            return web.Response(status=403)
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return web.Response(status=404, text="404 page not found")
        except web.HTTPMethodNotAllowed as error:
            allowed = {"Allow": ", ".join(sorted(error.allowed_methods))}
            return web.Response(status=405, text="405 method not allowed", headers=allowed)
        except CutOff:
            # The connection is closed, so this response is never sent.
            return web.Response()

    return check


def _is_allowed(request: web.Request) -> bool:
    """Ollama on loopback answers to local names only, against DNS rebinding."""
    origin = request.headers.get("Origin")
    if not _local(urlsplit(f"//{request.host}").hostname or ""):
        return False
    return origin is None or origin == "null" or _local(urlsplit(origin).hostname or "")


def _local(host: str) -> bool:
    if host in ("", "localhost", platform.node().lower()):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.endswith((".localhost", ".local", ".internal"))
    return address.is_loopback or address.is_private or address.is_unspecified
