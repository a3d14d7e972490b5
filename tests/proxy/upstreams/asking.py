"""A client of the simulator for its own tests: plain HTTP, nothing of the proxy."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from proxy.upstreams.demo import Simulator, running

Json = dict[str, Any]
WEATHER: Json = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK: Json = {
    "type": "function",
    "function": {"name": "tellTime", "parameters": {"type": "object", "properties": {}}},
}


def user(text: str, **more: Any) -> list[Json]:
    return [{"role": "user", "content": text, **more}]


@dataclass
class Client:
    url: str
    http: aiohttp.ClientSession

    def send(self, path: str, method: str = "POST", **rest: Any) -> Any:
        return self.http.request(method, self.url + path, **rest)

    async def ask(self, path: str, **body: Any) -> tuple[int, Any]:
        """The status and the document of a request without a stream."""
        async with self.send(path, json={"stream": False, **body}) as reply:
            return reply.status, json.loads(await reply.read())

    async def raw(self, path: str, **body: Any) -> tuple[int, bytes]:
        async with self.send(path, json=body) as reply:
            return reply.status, await reply.read()

    async def packets(self, path: str, **body: Any) -> list[bytes]:
        async with self.send(path, json=body) as reply:
            return [piece async for piece in reply.content.iter_any()]

    async def error(self, path: str, **body: Any) -> tuple[int, str]:
        status, document = await self.ask(path, **body)
        return status, document["error"]

    async def lines(self, path: str, **body: Any) -> list[Json]:
        return [line async for line in self.stream(path, **body)]

    async def stream(self, path: str, **body: Any) -> AsyncIterator[Json]:
        async with self.send(path, json=body) as reply:
            async for line in reply.content:
                yield json.loads(line)

    async def get(self, path: str) -> Any:
        async with self.send(path, "GET") as reply:
            return json.loads(await reply.read())


@asynccontextmanager
async def asking(simulator: Simulator) -> AsyncIterator[Client]:
    async with running(simulator) as url, aiohttp.ClientSession(read_bufsize=2**23) as http:
        yield Client(url, http)


def contents(lines: list[Json]) -> str:
    return "".join(line["message"]["content"] for line in lines)


def calls(lines: list[Json]) -> Iterator[tuple[bool, Json]]:
    """Each tool call, with whether it came on the done line."""
    for line in lines:
        for call in line["message"].get("tool_calls", ()):
            yield line["done"], call
