"""Files through the stock SDK."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from openai.types import FileDeleted, FileObject

from tests.conftest import Start
from tests.plugins.files.asking import config


async def test_files_through_the_sdk(start: Start, tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_bytes(b'{"a": 1}\n')
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as run, run.client(api_key="a-key") as client:
        made = await client.files.create(file=tmp_path / "notes.jsonl", purpose="fine-tune")
        FileObject.model_validate(made.model_dump(warnings="error"), strict=True)
        assert (made.filename, made.bytes, made.purpose) == ("notes.jsonl", 9, "fine-tune")
        assert await client.files.wait_for_processing(made.id) == made == await client.files.retrieve(made.id)
        lasts = {"anchor": "created_at", "seconds": 7200}
        other = await client.files.create(file=("b.bin", b"\0\xff"), purpose="user_data", expires_after=lasts)  # type: ignore[arg-type]
        assert other.expires_at == other.created_at + 7200
        assert (await client.files.content(other.id)).content == b"\0\xff"
        assert [one.id async for one in client.files.list(limit=1)] == [other.id, made.id]
        assert [one.id async for one in client.files.list(purpose="user_data", order="asc")] == [other.id]
        gone = await client.files.delete(made.id)
        FileDeleted.model_validate(gone.model_dump(), strict=True)
        with pytest.raises(openai.NotFoundError) as found:
            await client.files.content(made.id)
        assert found.value.code == "file_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.files.create(file=b"x", purpose="search")  # type: ignore[arg-type]
        assert wrong.value.param == "purpose"


async def test_without_the_plugin_the_endpoints_say_that_it_is_missing(start: Start) -> None:
    async with start() as run, run.client() as client:
        with pytest.raises(openai.NotFoundError, match="plugin `files`"):
            await client.files.list()
