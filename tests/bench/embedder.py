"""An embedding server in OpenAI's dialect: `python -m tests.bench.embedder PORT instant | minilm`.

instant returns random vectors at once; minilm is a real sentence model.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import orjson
from aiohttp import web

from tests.bench.minilm import MiniLM

DIMENSIONS: Final = 384
MODEL: Final = "instant"
REAL: Final = "minilm"
POOL: Final = 4096

Spoken = Callable[[Sequence[str]], Awaitable[list[bytes]]]


def instant() -> Spoken:
    raw = np.random.default_rng(5).standard_normal((POOL, DIMENSIONS)).astype(np.float32)
    raw /= np.linalg.norm(raw, axis=1, keepdims=True)
    pool = [spelled(one) for one in raw]

    async def spoken(texts: Sequence[str]) -> list[bytes]:
        return [pool[hash(text) % POOL] for text in texts]

    return spoken


def real() -> Spoken:
    model, threads = MiniLM(), ThreadPoolExecutor(2)
    model.embed(["to have everything read"])

    async def spoken(texts: Sequence[str]) -> list[bytes]:
        vectors = await asyncio.get_running_loop().run_in_executor(threads, model.embed, texts)
        return [spelled(one) for one in vectors]

    return spoken


def spelled(vector: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)


def served(name: str, spoken: Spoken) -> web.Application:
    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"}]})

    async def embeddings(request: web.Request) -> web.Response:
        texts = orjson.loads(await request.read())["input"]
        told = [
            b'{"object":"embedding","index":%d,"embedding":%s}' % (place, one)
            for place, one in enumerate(await spoken([texts] if isinstance(texts, str) else texts))
        ]
        usage = b'"usage":{"prompt_tokens":1,"total_tokens":1}'
        head = b'{"object":"list","model":"%s",%s,"data":[' % (name.encode(), usage)
        return web.Response(body=head + b",".join(told) + b"]}", content_type="application/json")

    application = web.Application(client_max_size=1 << 30)
    application.add_routes([web.get("/v1/models", models), web.post("/v1/embeddings", embeddings)])
    return application


if __name__ == "__main__":
    kind = sys.argv[2]
    application = served(kind, real() if kind == REAL else instant())
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None)
