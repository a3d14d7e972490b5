"""Fetches linked images in messages, only from hosts that the operator listed and never from private addresses."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
from collections.abc import Callable, Mapping
from socket import AddressFamily
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from msgspec.structs import replace

from proxy.config import Requests
from proxy.errors import BadCall
from proxy.types import Chat, Image
from proxy.wire.openai_messages import check_image

TIMEOUT: Final = aiohttp.ClientTimeout(total=20, sock_connect=5)


MOST_LINKS: Final = 16
"""Maximum number of linked images in one call."""
GLOBAL: Final = ipaddress.ip_network("2000::/3")
"""The range of public IPv6 addresses; all others are local or embed an IPv4 address.  Source: RFC 4291."""


def is_public(address: str) -> bool:
    """Whether an IP address, or the IPv4 address mapped to it, is public.  Raises ValueError if it is not an address.

    Tunnel addresses (6to4, Teredo), which hide an IPv4 address, count as private.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            hidden = found.sixtofour is not None or found.teredo is not None
            return found in GLOBAL and found.is_global and not hidden
        found = found.ipv4_mapped
    return found.is_global and not found.is_multicast


def pictured(chat: Chat) -> bool:
    return any(message.images for message in chat.messages)


class PublicResolver(AbstractResolver):
    """Resolves host names, and refuses those that resolve to a private address.

    It returns the addresses that it has checked, and these are connected to. So DNS rebinding, a name that resolves
    differently the second time, does not work.
    """

    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self.inner = ThreadedResolver()
        self.allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: AddressFamily = AddressFamily.AF_INET
    ) -> list[ResolveResult]:
        found = await self.inner.resolve(host, port, family=family)
        if not found or not all(self.allowed(one["host"]) for one in found):
            raise OSError(f"{host} leads to a private address")
        return found

    async def close(self) -> None:
        await self.inner.close()


class Images:
    """Fetches linked images.  allowed: tells whether an address may be connected to."""

    def __init__(self, requests: Requests, allowed: Callable[[str], bool] = is_public) -> None:
        self.hosts = frozenset(host.lower() for host in requests.image_hosts)
        self.most = requests.max_image_bytes
        self.together = requests.max_bytes
        """Maximum bytes of all linked images of a call; as many as its body may have."""
        self.allowed = allowed

    def linked(self, chat: Chat) -> bool:
        """Whether any image has to be fetched."""
        pictured = [message.images for message in chat.messages if message.images]
        return any(image.url for images in pictured for image in images)

    async def fetched(self, chat: Chat, name: str = "") -> Chat:
        """The chat with its links replaced by the images.

        name: the field that they are from, if it is not `messages`.
        Raises BadCall, which names the field of an image that is not allowed or cannot be fetched.
        """
        wanted = {
            one.url: name or f"messages[{index}].content"
            for index, message in enumerate(chat.messages)
            for one in message.images
            if one.url
        }
        found = await self.got(wanted, name or "messages")
        return replace(
            chat,
            messages=tuple(
                replace(message, images=tuple(found.get(one.url, one) for one in message.images))
                for message in chat.messages
            ),
        )

    async def got(self, wanted: Mapping[str, str], whole: str) -> Mapping[str, Image]:
        """Images by their links.  Raises BadCall as `fetched` does.

        wanted: for each link, the name of its field.  whole: the name of the field that contains all of them.
        """
        for count, (url, at) in enumerate(wanted.items()):
            if count >= MOST_LINKS:
                raise BadCall(
                    f"Invalid '{at}': more than {MOST_LINKS} linked images.", param=at, code="too_many_images"
                )
            self.check(url, at)
        got = await self.all(wanted)
        if sum(len(one.base64) for one in got) * 3 // 4 > self.together:
            message = f"The linked images have more than {self.together} bytes together."
            raise BadCall(message, param=whole, code="image_too_large")
        return dict(zip(wanted, got, strict=True))

    async def all(self, wanted: Mapping[str, str]) -> list[Image]:
        """The images in the order of `wanted`.  The first failure cancels the other requests."""
        try:
            async with self.session() as http, asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.get(http, url, at)) for url, at in wanted.items()]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    def check(self, url: str, at: str) -> None:
        """Raises BadCall if this URL may not be fetched: by its host, by credentials in it, or by its address."""
        try:
            parts = urlsplit(url)
            host, user = (parts.hostname or "").lower(), parts.username
        except ValueError:
            raise BadCall(
                f"Invalid '{at}': the image's URL cannot be read.", param=at, code="invalid_image_url"
            ) from None
        if host not in self.hosts or user:
            message = (
                f"Invalid '{at}': images are not fetched from '{host[:100]}'; send a data: URL, "
                "or have the operator list the host under `requests.image_hosts`."
            )
            raise BadCall(message, param=at, code="image_url_not_allowed")
        try:
            allowed = self.allowed(host.strip("[]"))
        except ValueError:
            return  # a name: checked when it is resolved
        if not allowed:
            raise BadCall(f"Invalid '{at}': '{host}' is a private address.", param=at, code="image_url_not_allowed")

    def session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=4, resolver=PublicResolver(self.allowed), use_dns_cache=False)
        return aiohttp.ClientSession(connector=connector, timeout=TIMEOUT, trust_env=False)

    async def get(self, http: aiohttp.ClientSession, url: str, at: str) -> Image:
        try:
            async with http.get(url, allow_redirects=False) as response:
                if response.status != 200:
                    raise self.lost(at, f"the host answered with status {response.status}")
                picture = await self.bounded(response, at)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            raise self.lost(at, str(error) or "no answer in time") from error
        check_image(picture, at)
        return Image(base64.b64encode(picture).decode())

    async def bounded(self, response: aiohttp.ClientResponse, at: str) -> bytes:
        parts, size = [], 0
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > self.most:
                raise BadCall(
                    f"Invalid '{at}': the image has more than {self.most} bytes.",
                    param=at,
                    code="image_too_large",
                )
        return b"".join(parts)

    def lost(self, at: str, why: str) -> BadCall:
        message = f"Invalid '{at}': the image could not be fetched: {why[:200]}."
        return BadCall(message, param=at, code="image_not_fetched")
