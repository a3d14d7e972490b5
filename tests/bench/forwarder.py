"""The minimum that aiohttp can do between a client and an upstream: `python -m tests.bench.forwarder PORT URL`.

It reads the body and forwards bytes without parsing anything.  Every choice is the fastest one: a bare server
without routes, access log, cookies and timeouts.
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web
from yarl import URL

FOREVER = aiohttp.ClientTimeout(total=None)
JSON = {"Content-Type": "application/json"}


class Forwarder:
    def __init__(self, http: aiohttp.ClientSession, upstream: str) -> None:
        self.http = http
        self.chat = URL(f"{upstream}/api/chat")

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        async with self.http.post(self.chat, data=body, headers=JSON) as answer:
            if answer.content_length is None:
                return await self.streamed(request, answer)
            return web.Response(body=await answer.read(), headers=JSON, status=answer.status)

    async def streamed(self, request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async for data in answer.content.iter_any():
            await response.write(data)
        await response.write_eof()
        return response


async def main(port: int, upstream: str) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    cookies = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(connector=connector, cookie_jar=cookies, timeout=FOREVER) as http:
        runner = web.ServerRunner(web.Server(Forwarder(http, upstream), access_log=None))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=2048).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
