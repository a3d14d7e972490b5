"""The page on which models are compared: one file, without data, that asks the other endpoints."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final

from aiohttp import web

from proxy.types import Route

FILE: Final = Path(__file__).with_name("page.html")
PARTS: Final = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class Page:
    def routes(self) -> Iterable[Route]:
        yield Route("GET", "/compare", self.show, "public")

    async def show(self, request: web.BaseRequest) -> web.StreamResponse:
        body, headers = shown()
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)


@cache
def shown() -> tuple[bytes, dict[str, str]]:
    """The page, and what it may do: its own script and style, known by their digests, and calls to this server."""
    text = FILE.read_text(encoding="utf-8")
    own = {kind: digest(code) for kind, code in PARTS.findall(text)}
    policy = (
        f"default-src 'none'; script-src '{own['script']}'; style-src '{own['style']}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return text.encode(), headers


def digest(code: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
