"""Files are stored as a whole or not at all, within limits, and are visible to their owner only."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import func, select, update

from plugins.files import retention
from plugins.files.store import PIECE, Store
from plugins.files.tables import FILES, PIECES
from proxy.errors import NotFound, TooLarge
from tests.conftest import Running, Start
from tests.plugins.files.asking import OPS, A, B, ask, config, form, send, store_of

LARGE = os.urandom(2 * PIECE + 12345)


async def rows(store: Store) -> tuple[int, int]:
    async with store.database.reading() as connection:
        counts = [select(func.count()).select_from(table) for table in (FILES, PIECES)]
        files, pieces = [int((await connection.execute(one)).scalar_one()) for one in counts]
        return files, pieces


async def until_rows(store: Store, wanted: tuple[int, int]) -> None:
    async with asyncio.timeout(20):
        while await rows(store) != wanted:  # noqa: ASYNC110  (there is no event)
            await asyncio.sleep(0.01)


async def test_a_file_is_returned_byte_by_byte(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        name = '../../etc/pässwd "x"\r\n.txt'
        told = await send(run, form(LARGE, "../../etc/pässwd 'x'.txt", purpose="user_data"))
        assert (told["bytes"], told["filename"], told["status"]) == (
            len(LARGE),
            "../../etc/pässwd 'x'.txt",
            "processed",
        ), name
        assert await rows(store_of(run)) == (1, 3)  # the most that is in memory at a time
        async with run.http.get(f"{run.url}/v1/files/{told['id']}/content", headers=A) as response:
            assert await response.read() == LARGE
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Content-Type"] == "application/octet-stream"
            assert response.headers["Content-Disposition"].startswith("attachment; filename*=UTF-8''..%2F..%2Fetc%2Fp")
            assert response.headers["Content-Length"] == str(len(LARGE)) and "x-request-id" in response.headers
        again = await send(run, form(b"", purpose="vision"))
        async with run.http.get(f"{run.url}/v1/files/{again['id']}/content", headers=A) as response:
            assert await response.read() == b"" and again["bytes"] == 0
        assert await ask(run, "DELETE", f"/v1/files/{told['id']}") == {
            "id": told["id"],
            "object": "file",
            "deleted": True,
        }
        assert await rows(store_of(run)) == (1, 0)
        await ask(run, "GET", f"/v1/files/{told['id']}", A, 404)


BAD: list[tuple[aiohttp.FormData, str, int]] = [
    (form(b"x"), "purpose", 400),
    (form(b"x", purpose="assistants_output"), "purpose", 400),
    (form(b"x", purpose="search"), "purpose", 400),
    (form(None, purpose="batch"), "file", 400),
    (form(b"x" * 101, purpose="batch"), "file", 413),
    (form(b"x", purpose="batch", path="/etc/passwd"), "path", 400),
    (form(b"x", purpose="batch", **{"expires_after[seconds]": "3600"}), "expires_after[anchor]", 400),
    (form(b"x", purpose="batch", **{"expires_after[anchor]": "created_at"}), "expires_after[seconds]", 400),
    (
        form(b"x", purpose="batch", **{"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}),
        "expires_after[anchor]",
        400,
    ),
    (
        form(b"x", purpose="batch", **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "10"}),
        "expires_after[seconds]",
        400,
    ),
    (form(b"x", purpose="u" * 70_000), "purpose", 413),
]
PATHS = [
    ("GET", "/v1/files?limit=0", "limit"),
    ("GET", "/v1/files?limit=10001", "limit"),
    ("GET", "/v1/files?order=up", "order"),
    ("GET", "/v1/files?after=file-1", "after"),
    ("GET", "/v1/files?color=red", "color"),
    ("GET", "/v1/files/file-1", "file_id"),
    ("GET", "/v1/files/file-1/content", "file_id"),
    ("DELETE", "/v1/files/..%2F..%2Fetc", "file_id"),
]


async def test_invalid_uploads_name_the_field_and_leave_nothing(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", max_file_bytes=100)) as run:
        for data, param, status in BAD:
            told = await send(run, data, A, status)
            assert told["error"]["param"] == param and told["error"]["message"], told
        for method, path, param in PATHS:
            told = await ask(run, method, path, A, None)
            assert told["error"]["param"] == param, told
        two = form(b"x", purpose="batch")
        two.add_field("file", b"y", filename="b.txt")
        assert (await send(run, two, A, 400))["error"]["param"] == "file"
        await until_rows(store_of(run), (0, 0))
        await broken(run)
        await until_rows(store_of(run), (0, 0))


async def broken(run: Running) -> None:
    """Bodies that are not forms, or are cut off."""
    url = f"{run.url}/v1/files"
    async with run.http.post(url, json={"purpose": "batch"}, headers=A) as response:
        assert response.status == 415 and (await response.json())["error"]["code"] == "unsupported_media_type"
    head = {**A, "Content-Type": "multipart/form-data; boundary=b"}
    cut = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhalf of it'
    for body, headers in ((cut, head), (b"nothing", head), (cut, {**A, "Content-Type": "multipart/form-data"})):
        async with run.http.post(url, data=body, headers=headers) as response:
            assert response.status == 400, body
            assert (await response.json())["error"]["code"] in ("invalid_body", "missing_required_parameter")
    with pytest.raises(aiohttp.ClientError):
        await run.http.post(url, data=cut_off_upload(), headers=head)


async def test_a_client_that_disconnects_during_an_upload_is_logged_as_499_without_errors(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as run, asyncio.timeout(20):
        head = {**A, "Content-Type": "multipart/form-data; boundary=b"}
        with pytest.raises(aiohttp.ClientError):
            await run.http.post(f"{run.url}/v1/files", data=cut_off_upload(), headers=head)
        while not (told := [one for one in caplog.records if one.name == "gemmapy.requests"]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert [one.__dict__["told"]["status"] for one in told] == [499]
    assert all(one.levelno < logging.ERROR for one in caplog.records)


async def cut_off_upload() -> AsyncIterator[bytes]:
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhalf'
    raise RuntimeError("the client has gone")


async def test_storage_per_caller_is_limited(start: Start, database_url: str) -> None:
    async with start(config(database_url, max_files=2, max_bytes=10)) as run:
        first = await send(run, form(b"12345", purpose="batch"))
        assert (await send(run, form(b"123456", purpose="batch"), A, 413))["error"]["code"] == "storage_full"
        await until_rows(store_of(run), (1, 1))
        await send(run, form(b"12345", purpose="batch"))
        assert (await send(run, form(b"", purpose="batch"), A, 400))["error"]["code"] == "too_many_files"
        await send(run, form(b"123456", purpose="batch"), B)  # another caller has a limit of its own
        await ask(run, "DELETE", f"/v1/files/{first['id']}")
        await send(run, form(b"12345", purpose="batch"))


async def test_other_callers_files_are_not_found(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        id = (await send(run, form(b"canary", purpose="user_data")))["id"]
        for who in (B, OPS):
            for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
                told = await ask(run, method, f"/v1/files/{id}{path}", who, 404)
                assert told["error"]["code"] == "file_not_found"
            assert (await ask(run, "GET", f"/v1/files?after={id}", who, 404))["error"]["param"] == "after"
            assert (await ask(run, "GET", "/v1/files", who))["data"] == []
        store = store_of(run)
        assert await store.find("bob", [id]) == {} and list(await store.find("alice", [id])) == [id]
        with pytest.raises(NotFound):
            await anext(store.pieces("bob", id))


async def test_files_are_paged(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        ids = [(await send(run, form(b"x", purpose=one)))["id"] for one in ("batch", "evals", "batch")]
        assert [one["id"] for one in (await ask(run, "GET", "/v1/files"))["data"]] == ids[::-1]
        page = await ask(run, "GET", "/v1/files?limit=2&order=asc")
        assert [one["id"] for one in page["data"]] == ids[:2] and page["has_more"] and page["last_id"] == ids[1]
        page = await ask(run, "GET", f"/v1/files?limit=2&order=asc&after={page['last_id']}")
        assert [one["id"] for one in page["data"]] == ids[2:] and not page["has_more"]
        page = await ask(run, "GET", "/v1/files?purpose=batch")
        assert [one["id"] for one in page["data"]] == [ids[2], ids[0]]


async def test_expired_files_and_unfinished_uploads_are_deleted(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        store = store_of(run)
        lasts = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        short = await send(run, form(b"x", purpose="user_data", **lasts))
        assert short["expires_at"] == short["created_at"] + 3600
        batch = await send(run, form(b"x", purpose="batch"))
        assert batch["expires_at"] == batch["created_at"] + 30 * 86400
        kept = await send(run, form(b"x", purpose="user_data"))
        assert kept["expires_at"] is None
        await store.put("alice", await store.begin("alice", "left"), 0, b"half")
        assert await rows(store) == (4, 4) and len((await ask(run, "GET", "/v1/files"))["data"]) == 3
        await retention.tidy(store)
        assert await rows(store) == (4, 4)
        removed: list[tuple[str, str]] = []

        async def removing(owner: str, id: str) -> None:
            removed.append((owner, id))

        store.file_access.removal_hooks.append(removing)
        async with store.database.writing() as connection:
            await connection.execute(update(FILES).where(FILES.c.id == short["id"]).values(expires=1))
            await connection.execute(update(FILES).values(changed=1))
        await ask(run, "GET", f"/v1/files/{short['id']}", A, 404)  # before it is deleted
        await retention.tidy(store)
        assert await rows(store) == (2, 2) and removed == [("alice", short["id"])] * 2  # before and after deletion


async def test_all_files_of_a_caller_are_exported_and_deleted(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        await send(run, form(LARGE, purpose="user_data"))
        await send(run, form(b"bob's", purpose="user_data"), B)
        told: list[dict[str, Any]] = (await ask(run, "GET", "/api/me/data"))["data"]["files"]
        assert told[0]["filename"] == "a.txt"
        assert b"".join(base64.b64decode(one["base64"]) for one in told[1:]) == LARGE
        assert (await ask(run, "DELETE", "/api/me/data"))["deleted"]["files"] == 1
        assert await rows(store_of(run)) == (1, 1) and (await ask(run, "GET", "/v1/files"))["data"] == []


async def test_a_file_deleted_during_an_export_does_not_affect_the_others(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "SOME", 1)
    async with start(config(database_url)) as run:
        files = [await send(run, form(b"x", purpose="user_data")) for _ in range(3)]
        told = retention.CallerFiles(store := store_of(run)).export("alice")
        first = await anext(told)
        await store.drop(first["id"])
        left = [one["id"] async for one in told if "filename" in one]
        assert sorted([first["id"], *left]) == sorted(one["id"] for one in files)


async def test_a_file_deleted_while_it_is_uploaded_is_not_found(start: Start, database_url: str) -> None:
    async with start(config(database_url)) as run:
        store = store_of(run)
        for drop in (True, False):
            id = await store.begin("alice", "a.txt")
            await store.put("alice", id, 0, b"first")
            if drop:
                await ask(run, "DELETE", "/api/me/data")
            else:  # as if the deletion were half done
                async with store.database.writing() as connection:
                    await connection.execute(update(FILES).where(FILES.c.id == id).values(status="gone"))
            for more in (store.put("alice", id, 1, b"second"), store.finish("alice", id, "user_data", None)):
                with pytest.raises(NotFound):
                    await more
            await store.drop(id)
        assert await rows(store) == (0, 0)


async def test_another_feature_can_store_a_file_for_a_caller(start: Start, database_url: str) -> None:
    async def pieces(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 60

    async with start(config(database_url, max_file_bytes=100, max_bytes=130)) as run:
        store = store_of(run)
        made = await store.add("alice", "results.csv", "fine-tune-results", pieces(2))
        assert (made.bytes, made.purpose) == (120, "fine-tune-results")
        assert [one["id"] for one in (await ask(run, "GET", "/v1/files?purpose=fine-tune-results"))["data"]] == [
            made.id
        ]
        with pytest.raises(TooLarge):
            await store.add("alice", "more.csv", "fine-tune-results", pieces(1))
        assert await rows(store) == (1, 2)
