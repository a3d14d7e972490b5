"""A feature's web page: one HTML file, without data, whose script calls the feature's other endpoints."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from aiohttp import web

from proxy.types import Route

PARTS: Final = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    """file: contains exactly one script and one style, and loads nothing from elsewhere."""

    path: str
    file: Path

    def routes(self) -> Iterable[Route]:
        yield Route("GET", self.path, self.show, "public")

    async def show(self, request: web.BaseRequest) -> web.StreamResponse:
        body, headers = shown(self.file)
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)


@cache
def shown(file: Path) -> tuple[bytes, dict[str, str]]:
    """The page and its headers.  Its policy allows its own script and style, by digest, and calls to this server."""
    text = file.read_text(encoding="utf-8")
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
