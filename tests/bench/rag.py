"""A server with documents, and an embedding server, for benchmarks of retrieval."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.bench.embedder import MODEL
from tests.servers import free_port
from tests.whole.commands import Serving, fresh_process, served

AT_ONCE: Final = 32
DEMO: Final = "demo"
"""The server's built-in embedding model."""


def config(folder: Path, **settings: Any) -> str:
    told: dict[str, Any] = {
        "listen": {"port": 0},
        "log": {"level": "warning"},
        "upstreams": {"local": {"demo": {}}},
        "database": {"url": f"sqlite:///{folder}/x.db"},
        "stores": {"texts": {"lancedb": f"{folder}/lance"}},
        "plugins": {
            "documents": {"embed": "demo-embed", **settings},
            "cache": {},
            "lag": {"use": "tests.bench.lag:Lag"},
        },
        "chains": {"chat": ["documents"], "embeddings": ["cache"]},
    }
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in told.items())


@asynccontextmanager
async def server(
    folder: Path, embedder: str = "", **settings: Any
) -> AsyncIterator[tuple[aiohttp.ClientSession, Serving]]:
    file = folder / "proxy.yaml"
    text = config(folder, **settings)
    if embedder:
        text = text.replace('{"demo": {}}', json.dumps({"openai": embedder}))
    if settings.get("embed") == MODEL:  # this benchmark measures the server's maximum, without a cache
        text = text.replace('["cache"]', "[]")
    file.write_text(text)
    async with served("serve", "--config", str(file), begin=fresh_process) as serving:
        connector = aiohttp.TCPConnector(limit=2 * AT_ONCE)
        async with aiohttp.ClientSession(serving.url, connector=connector) as http:
            yield http, serving


async def post(http: aiohttp.ClientSession, path: str, **body: Any) -> Any:
    async with http.post(f"/api/rag{path}", json=body) as response:
        told = await response.json()
        if response.status >= 400:
            raise RuntimeError(told["error"]["message"])
        return told


def memory(serving: Serving) -> int:
    """Resident memory of the server, in bytes."""
    fields = Path(f"/proc/{serving.process.pid}/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


@asynccontextmanager
async def embedding(kind: str) -> AsyncIterator[str]:
    """The URL of an embedding server in a separate process; "" for the built-in model."""
    if kind == DEMO:
        yield ""
        return
    port = free_port()
    command = (sys.executable, "-m", "tests.bench.embedder", str(port), kind)
    # Texts are embedded in parallel already: several threads per multiplication would only wait for each other.
    process = await asyncio.create_subprocess_exec(*command, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    try:
        async with aiohttp.ClientSession() as http, asyncio.timeout(60):
            while process.returncode is None:
                with suppress(aiohttp.ClientError):
                    async with http.get(f"http://127.0.0.1:{port}/v1/models"):
                        break
                await asyncio.sleep(0.05)
        if process.returncode is not None:
            raise SystemExit("the embedder does not run")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
