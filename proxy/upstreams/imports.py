"""Creates models on the Ollama hosts of an upstream.  Source: Ollama's API, "Create a Model" and "Push a Blob"."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from proxy.errors import BadCall, NotFound, UpstreamError
from proxy.imports import NewModel, Telling
from proxy.types import JSON
from proxy.upstreams.catalogue import Catalogue
from proxy.upstreams.ollama import Ollama
from proxy.upstreams.pool import Pool
from proxy.wire import hops
from proxy.wire.ollama_models import canonical

CONNECT: Final = 10.0
SILENCE_TIMEOUT: Final = 1800.0
"""Seconds that a host may take to check or copy a file, without sending anything."""
LOWEST_UPLOAD_RATE: Final = 1024 * 1024
"""Minimum bytes per second of an upload, from which its timeout is computed."""
MOST_LINE_BYTES: Final = 64 * 1024
"""Maximum bytes of one line of a host's answer; also how much of an error is read."""
MOST_LINES: Final = 100_000
SMALL_REQUEST: Final = 10.0
ZERO_DIGEST: Final = f"sha256:{'0' * 64}"
SKIPPED_CAUSES: Final = ("connect", "timeout", "cut")
"""Causes of errors for which a host is skipped instead of giving up the import."""
ADAPTERS_REFUSED: Final = "no longer supported"
"""Part of the error of an Ollama that no longer accepts adapters (0.34.1 and later)."""


@dataclass(frozen=True, slots=True)
class Importer:
    """Implements `proxy.imports.Imports`.  server: this server's own id, for loop detection."""

    http: aiohttp.ClientSession
    catalogue: Catalogue
    pools: Mapping[str, Pool]
    server: str

    async def pool(self, base: str) -> tuple[Pool, str]:
        """The pool of a model, and the model's real name.  Raises BadCall if its hosts are not Ollama servers."""
        upstream, info = await self.catalogue.locate(base)
        pool = self.pools[upstream]
        if not all(isinstance(host, Ollama) for host in pool.members.values()):
            message = f"The model '{base[:200]}' is not on an Ollama: no model can be added to its upstream."
            raise BadCall(message, param="model", code="model_not_tunable")
        return pool, info.name

    async def check(self, base: str, adapter: bool) -> None:
        pool, real = await self.pool(base)
        if not adapter:
            return
        told = await asyncio.gather(*(self.accepts_adapters(url, real) for url in pool.members), return_exceptions=True)
        if all(isinstance(one, BaseException) for one in told):
            raise next(one for one in told if isinstance(one, BaseException))
        if False in told:
            message = (
                f"The model '{base[:200]}' is at an Ollama of 0.34.1 or later, which takes no adapters: only "
                "a trainer whose output is 'gguf', a whole model, can tune it."
            )
            raise BadCall(message, param="model", code="adapters_unsupported")

    async def accepts_adapters(self, url: str, base: str) -> bool:
        """Whether the host accepts adapters.  A request without a name always fails; the error shows the reason."""
        body = {"model": "", "from": base, "adapters": {"a.gguf": ZERO_DIGEST}, "stream": False}
        timeout = aiohttp.ClientTimeout(total=SMALL_REQUEST, sock_connect=CONNECT)
        async with self.exchange(url, "POST", "/api/create", timeout, json=body) as answer:
            return ADAPTERS_REFUSED not in await error_of(answer)

    async def facts(self, base: str) -> Mapping[str, JSON]:
        pool, real = await self.pool(base)
        try:
            found = orjson.loads(await pool.show({"model": real})).get("model_info")
        except (orjson.JSONDecodeError, AttributeError):
            found = None
        if not isinstance(found, dict):
            raise UpstreamError(f"The host of '{base[:200]}' does not report its weights.", "invalid_answer")
        return found

    async def create(self, model: NewModel, told: Telling) -> Sequence[str]:
        pool, real = await self.pool(model.base)
        digest = await asyncio.to_thread(digest_of, model.path)
        name = f"{model.name}.gguf"
        body: dict[str, JSON] = {"model": model.name, "adapters" if model.adapter else "files": {name: digest}}
        body |= {"from": real} if model.adapter else await self.inherited(pool, real)
        made, without, away = list[str](), list[str](), list[UpstreamError]()
        for url, member in pool.members.items():
            try:
                if await member.find(real) is None:
                    without.append(f"{url} does not have '{real[:200]}'.")
                    continue
                await self.upload(url, model.path, digest, told)
                await self.create_at(url, body, told)
                made.append(url)
            except UpstreamError as error:
                if error.cause not in SKIPPED_CAUSES:
                    await asyncio.gather(
                        *(self.delete_at(one, model.name) for one in (*made, url)), return_exceptions=True
                    )
                    raise
                away.append(error)
            finally:
                pool.mark_outdated(url)
        if not made:
            raise away[0] if away else NotFound(" ".join(without), param="model", code="model_not_found")
        return [*without, *map(str, away)]

    async def inherited(self, pool: Pool, base: str) -> dict[str, JSON]:
        """The base's system prompt and parameters, for a complete model.  Its chat template is in its GGUF file."""
        shown = orjson.loads(await pool.show({"model": base}))
        system, parameters = shown.get("system"), parameters_of(str(shown.get("parameters") or ""))
        return ({"system": system} if system else {}) | ({"parameters": parameters} if parameters else {})

    async def upload(self, url: str, path: Path, digest: str, told: Telling) -> None:
        where = f"/api/blobs/{digest}"
        async with self.exchange(
            url, "HEAD", where, aiohttp.ClientTimeout(total=SMALL_REQUEST, sock_connect=CONNECT)
        ) as answer:
            if answer.status == 200:
                return
        size = (await asyncio.to_thread(path.stat)).st_size
        timeout = aiohttp.ClientTimeout(total=SILENCE_TIMEOUT + size / LOWEST_UPLOAD_RATE, sock_connect=CONNECT)
        await told(f"Sending {size} bytes to {url}.")
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        file = await asyncio.to_thread(path.open, "rb")
        try:
            async with self.exchange(url, "POST", where, timeout, data=file, headers=headers) as answer:
                if answer.status not in (200, 201):
                    raise import_refused(url, await error_of(answer))
        finally:
            file.close()

    async def create_at(self, url: str, body: Mapping[str, JSON], told: Telling) -> None:
        """Create the model at one host.  Raises UpstreamError for the first line with an error, whatever follows it."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE_TIMEOUT)
        async with self.exchange(url, "POST", "/api/create", timeout, json=body) as answer:
            if answer.status != 200:
                raise import_refused(url, await error_of(answer))
            last, status = "", ""
            async for line in lines_of(answer):
                if error := line.get("error"):
                    raise import_refused(url, str(error))
                if (status := str(line.get("status", ""))[:500]) != last:
                    await told(f"{url}: {status}")
                last = status
            if status != "success":
                raise UpstreamError(f"{url} broke off.", "cut")

    async def remove(self, name: str, base: str) -> None:
        pool = await self.pool_of_tuned(name, base)
        try:
            await asyncio.gather(*(self.delete_at(url, name) for url in pool.members))
        finally:
            for url in pool.members:
                pool.mark_outdated(url)

    async def pool_of_tuned(self, name: str, base: str) -> Pool:
        """The pool of a model; if it does not exist or may not be used, that of the model that it was made of."""
        try:
            return (await self.pool(name))[0]
        except NotFound:
            return (await self.pool(base))[0]

    async def delete_at(self, url: str, name: str) -> None:
        timeout = aiohttp.ClientTimeout(total=60, sock_connect=CONNECT)
        async with self.exchange(url, "DELETE", "/api/delete", timeout, json={"model": canonical(name)}) as answer:
            if answer.status not in (200, 404):
                raise import_refused(url, await error_of(answer))

    def exchange(self, url: str, method: str, path: str, timeout: aiohttp.ClientTimeout, **more: Any) -> Exchange:
        headers = {"Via": hops.via_entry(self.server), **more.pop("headers", {})}
        how = {"timeout": timeout, "headers": headers, "allow_redirects": False, **more}
        return Exchange(lambda: self.http.request(method, url + path, **how), url)


class Exchange:
    """A context manager for one exchange, whose failures are raised as UpstreamErrors that name the host."""

    def __init__(self, ask: Callable[[], Awaitable[aiohttp.ClientResponse]], url: str) -> None:
        self.ask = ask
        self.url = url
        self.answer: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            self.answer = await self.ask()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self.as_upstream_error(error, "connect") from error
        return self.answer

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.answer is not None:
            self.answer.close()
        if isinstance(error, (aiohttp.ClientError, TimeoutError)):
            raise self.as_upstream_error(error, "cut") from error

    def as_upstream_error(self, error: Exception, cause: Any) -> UpstreamError:
        late = isinstance(error, TimeoutError)
        why = "does not answer in time" if late else f"cannot be asked: {error}"
        return UpstreamError(f"{self.url} {why}.", "timeout" if late else cause)


def import_refused(url: str, why: str) -> UpstreamError:
    return UpstreamError(f"{url} refuses the model: {why[:1000]}", "server", code="import_refused")


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


async def error_of(answer: aiohttp.ClientResponse) -> str:
    """The error in a failed answer, or the beginning of its text."""
    text = (await answer.content.read(MOST_LINE_BYTES)).decode("utf-8", "replace")
    try:
        return str(orjson.loads(text)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return text[:1000] or f"status {answer.status}"


async def lines_of(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, JSON]]:
    """The answer's JSON objects, one per line.  Raises UpstreamError for other, too long, and too many lines."""
    rest, count = b"", 0
    async for part in answer.content.iter_any():
        *lines, rest = (rest + part).split(b"\n")
        count += len(lines)
        if len(rest) > MOST_LINE_BYTES or count > MOST_LINES:
            raise UpstreamError(f"{answer.url.host} sent a line that is too long.", "invalid_answer")
        for line in filter(None, lines):
            yield object_of(line)
    if rest.strip():
        yield object_of(rest)


def object_of(line: bytes) -> dict[str, JSON]:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise UpstreamError("An Ollama sent a line that cannot be read.", "invalid_answer")
    return found


def parameters_of(text: str) -> dict[str, JSON]:
    """Parse what `/api/show` writes, a name and a value per line; a name with several lines gets a list."""
    found: dict[str, JSON] = {}
    for line in text.splitlines():
        name, _, written = line.strip().partition(" ")
        try:
            value = json.loads(written.strip())
        except ValueError:
            value = written.strip()
        if name:
            found[name] = value if name not in found else [*as_list(found[name]), value]
    return found


def as_list(value: JSON) -> list[JSON]:
    return value if isinstance(value, list) else [value]
