"""An embedder in OpenAI's dialect that takes no time: `python -m tests.bench.embedder PORT`.  It says anything."""

from __future__ import annotations

import sys
from typing import Final

import numpy as np
import orjson
from aiohttp import web

DIMENSIONS: Final = 384
MODEL: Final = "instant"
POOL: Final = 4096


def pool() -> list[bytes]:
    raw = np.random.default_rng(5).standard_normal((POOL, DIMENSIONS)).astype(np.float32)
    raw /= np.linalg.norm(raw, axis=1, keepdims=True)
    return [orjson.dumps(one, option=orjson.OPT_SERIALIZE_NUMPY) for one in raw]


VECTORS: Final = pool()


async def models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})


async def embeddings(request: web.Request) -> web.Response:
    texts = orjson.loads(await request.read())["input"]
    told = [
        b'{"object":"embedding","index":%d,"embedding":%s}' % (place, VECTORS[hash(text) % POOL])
        for place, text in enumerate(texts)
    ]
    head = b'{"object":"list","model":"instant","usage":{"prompt_tokens":1,"total_tokens":1},"data":['
    return web.Response(body=head + b",".join(told) + b"]}", content_type="application/json")


if __name__ == "__main__":
    application = web.Application(client_max_size=1 << 30)
    application.add_routes([web.get("/v1/models", models), web.post("/v1/embeddings", embeddings)])
    web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None)
