"""Texts and their vectors in object storage: an S3 simulated by moto, if that is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import aiohttp
import numpy as np
import pytest

from proxy.stores.lance import Lance
from proxy.stores.vectors import Row, VectorsAway

moto = pytest.importorskip("moto.server", reason="object storage is tried where moto[server] is installed")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a reachable storage; each test creates the bucket if it needs it."""
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    told = {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "ALLOW_HTTP": "true", "REGION": "us-east-1"}
    for name, value in {**told, "ENDPOINT": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    yield f"http://{host}:{port}/bucket"
    server.stop()


async def test_object_storage_is_used_by_several_processes(bucket: str) -> None:
    async with aiohttp.ClientSession() as http, http.put(bucket) as response:
        assert response.status == 200
    one, other = Lance("s3://bucket/texts"), Lance("s3://bucket/texts")
    assert await one.matching("t", "word1", 3) == [] and list(await one.tables()) == []
    vectors = np.eye(200, dtype=np.float32)
    several = ([Row(f"d{which}", 1, n, f"word{n} of it") for n in range(200)] for which in range(6))
    await asyncio.gather(*((one, other)[n % 2].add("t", rows, vectors) for n, rows in enumerate(several)))
    assert await other.counts("t") == {(f"d{which}", 1): 200 for which in range(6)}
    await one.tend("t")
    await one.remove("t", "d0")
    assert {found.row.position for found in await other.nearest("t", vectors[7], 5)} == {7}
    assert {found.row.document for found in await other.matching("t", "word9", 9)} == {f"d{n}" for n in range(1, 6)}
    await other.drop("t")
    assert await one.matching("t", "word9", 9) == [] and list(await one.tables()) == []
    await one.aclose()
    await other.aclose()


async def test_a_missing_bucket_is_a_clear_error(bucket: str) -> None:
    store = Lance("s3://nowhere/texts")
    with pytest.raises(VectorsAway):
        await store.add("t", [Row("d", 1, 0, "text")], np.eye(1, dtype=np.float32))
    await store.aclose()
