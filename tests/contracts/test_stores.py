"""Specific to Redis, and what happens to calls when a store fails."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from redis.asyncio.connection import SSLConnection

from proxy.availability import Availability
from proxy.clock import Clock
from proxy.stores import breaker
from proxy.stores.keyvalue import NewValue, StoreError
from proxy.stores.redis import SPACE, RedisStore
from tests.servers import redis_server


class Watch(Clock):
    """A clock that stands still until the test moves it."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


async def test_values_written_to_redis_by_others_are_misses(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server:
        store = RedisStore(server.url, 30.0, Clock())
        await store.set([NewValue("a", b"1", 60)])
        for value in (b"", b"x", b"G1", b"G1" + b"\xff" * 12 + b"short"):
            await store.client.set(f"{SPACE}b", value)
            assert await store.get(["b"]) == [None]
            assert [one.key async for one in store.entries()] == ["a"]
        await store.client.delete(f"{SPACE}b")
        await store.client.lpush(f"{SPACE}b", "a list")
        assert [found is not None for found in await store.get(["b", "a"])] == [False, True]
        await store.aclose()


async def test_another_data_type_in_redis_is_a_miss_and_not_a_failure(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server:
        store = RedisStore(server.url, 1.0, Clock())
        await store.client.lpush(f"{SPACE}b", "a list")
        for _ in range(breaker.FAILURES + 1):
            assert await store.get(["b"]) == [None]
        await store.set([NewValue("a", b"1", 60)])
        assert (await store.get(["a"]))[0] is not None
        await store.aclose()


async def test_an_error_reply_of_redis_is_a_store_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For example because the user has no permission; keys, values and labels are not logged."""
    async with redis_server(tmp_path) as server:
        store = RedisStore(server.url, 1.0, Clock())
        await store.set([NewValue("a", b"1", 60)])
        await store.client.execute_command("ACL", "SETUSER", "default", "-get", "-set")
        for keys in (["a"], ["a", "b"]):
            with pytest.raises(StoreError, match="no permissions"):
                await store.get(keys)
        with pytest.raises(StoreError, match="no permissions") as raised:
            await store.set([NewValue("canary-key", b"canary-value", 60, b"canary-label")])
        assert "canary" not in str(raised.value) + caplog.text
        await store.aclose()


async def test_a_redis_that_hangs_opens_the_circuit_breaker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch()
    async with redis_server(tmp_path) as server:
        store = RedisStore(server.url, 30.0, watch)
        await store.set([NewValue("a", b"1", 60)])
        server.freeze()
        store.breaker.patience = 0.05
        for _ in range(breaker.FAILURES):
            with pytest.raises(StoreError, match=r"no answer within 0\.05 seconds|Timeout"):
                await store.get(["a"])
        assert store.breaker.open
        server.thaw()
        store.breaker.patience = 30.0
        with pytest.raises(StoreError, match="not used for a moment"):
            await store.get(["a"])
        assert len([text for text in caplog.messages if "go on without it" in text]) == 1
        watch.now += breaker.REST
        with caplog.at_level(logging.INFO):
            assert (await store.get(["a"]))[0] is not None
        assert "answers again" in caplog.text and not store.breaker.open
        await store.aclose()


NO_ANSWERS = {
    "loading": b"-LOADING Redis is loading the dataset in memory\r\n",
    "moved": b"-MOVED 1 127.0.0.1:1\r\n",
    "full": b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "only read": b"-READONLY You can't write against a read only replica.\r\n",
    "locked": b"-NOAUTH Authentication required.\r\n",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "garbage": b"\x00\xff\r\n",
    "never ends": b"$999999999999\r\n",
    "hangs up": b"",
}


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
@pytest.mark.parametrize("said", NO_ANSWERS)
async def test_an_invalid_reply_is_soon_a_store_error_and_no_exception_of_redis(said: str, scheme: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while NO_ANSWERS[said] and await reader.read(65_536):
                writer.write(8 * NO_ANSWERS[said])
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening, asyncio.timeout(10):
        store = RedisStore(f"{scheme}://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0", 0.1, Clock())
        for _ in range(breaker.FAILURES):
            with pytest.raises(StoreError):
                await store.get(["a"])
            with pytest.raises(StoreError):
                await store.set([NewValue("a", b"1", 60)])
        assert store.breaker.open
        await store.aclose()


async def test_a_redis_that_was_down_is_used_again_by_itself(tmp_path: Path) -> None:
    watch = Watch()
    async with redis_server(tmp_path) as server:
        store = RedisStore(server.url, 30.0, watch)
        await store.set([NewValue("a", b"1", 60)])
        server.kill()
        for _ in range(breaker.FAILURES):
            with pytest.raises(StoreError):
                await store.get(["a"])
        await server.start()
        watch.now += breaker.REST
        assert await store.get(["a"]) == [None]
        await store.set([NewValue("a", b"2", 60)])
        assert (await store.get(["a"]))[0] is not None
        await store.aclose()


async def test_a_url_can_select_tls() -> None:
    store = RedisStore("rediss://user:secret@redis.example:6380/2", 1.0, Clock())
    pool = store.client.connection_pool
    assert pool.connection_class is SSLConnection
    assert pool.connection_kwargs["db"] == 2 and pool.connection_kwargs["password"] == "secret"
    assert "secret" not in store.breaker.name
    await store.aclose()


@asynccontextmanager
async def with_tls(port: int, folder: Path) -> AsyncIterator[int]:
    """A TLS port that forwards to this one, like Redis' own; its certificate is `cert.pem` in the folder."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, local = datetime.now(UTC), x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    cert = made.add_extension(local, critical=True).sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(cert.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pass_on(reader, outer), pass_on(inner, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listening:
        yield listening.sockets[0].getsockname()[1]


async def test_the_certificate_of_a_redis_with_tls_is_verified(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server, with_tls(server.port, tmp_path) as port:
        url = f"rediss://127.0.0.1:{port}/0"
        store = RedisStore(f"{url}?ssl_ca_certs={tmp_path}/cert.pem", 10.0, Clock())
        await store.set([NewValue("a", b"1", 60)])
        assert (await store.get(["a"]))[0] is not None
        await store.aclose()
        stranger = RedisStore(url, 10.0, Clock())
        with pytest.raises(StoreError, match="self-signed"):
            await stranger.get(["a"])
        await stranger.aclose()


async def test_an_open_circuit_breaker_lets_one_attempt_through_at_a_time(tmp_path: Path) -> None:
    watch = Watch()
    guard = breaker.Breaker("it", 0.05, watch, Availability())
    hung = asyncio.Event()
    for _ in range(breaker.FAILURES):
        with pytest.raises(StoreError):
            await guard.do(hung.wait())
    watch.now += breaker.REST
    trying = asyncio.ensure_future(guard.do(hung.wait(), 5))
    await asyncio.sleep(0)
    with pytest.raises(StoreError, match="not used for a moment"):
        await guard.do(hung.wait())
    hung.set()
    assert await trying is True and not guard.open


async def test_a_failure_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch()
    guard = breaker.Breaker("it", 0.01, watch, Availability())

    async def fails() -> None:
        raise ConnectionResetError("gone")

    for _ in range(30):
        with pytest.raises(StoreError):
            await guard.do(fails())
        watch.now += breaker.REST
    assert len([text for text in caplog.messages if "go on without it" in text]) == 3
