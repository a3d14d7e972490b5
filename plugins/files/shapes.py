"""Files in OpenAI's shapes.  Source: OpenAI's API reference, "Files"."""

from __future__ import annotations

import orjson
from aiohttp import web

from plugins.files.store import File
from proxy.types import JSON


def answer(body: JSON) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")


def head(file: File) -> dict[str, JSON]:
    """The status is always `processed`: a file needs no processing before it can be used."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.at // 1_000_000,
        "expires_at": None if file.expires is None else file.expires // 1_000_000,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }
