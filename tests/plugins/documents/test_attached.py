"""Files in messages are read as text, in every dialect."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.conversations import ConversationItem as AnyItem
from pydantic import TypeAdapter

from plugins.documents.file_text import MOST, FileTextExtractor
from plugins.documents.files import FileConverter
from proxy.errors import Busy
from tests.conftest import Running, Start
from tests.plugins.documents.asking import A, B
from tests.plugins.documents.storing import LANTERNS, ORCHARDS, call, config, upload
from tests.plugins.documents.test_files import pdf
from tests.whole.asking import PNG, data_url

ConversationItem: TypeAdapter[Any] = TypeAdapter(AnyItem)

WHO = "Who was the keeper?"
CHAIN = ("stored", "documents", "cache")


def contents_sent(run: Running) -> list[str]:
    bodies = [one.body for one in run.ollama.seen if one.path == "/api/chat" and one.body.get("messages")]
    return [message["content"] for message in bodies[-1]["messages"]]


def fenced(text: str, name: str, told: str) -> bool:
    return re.fullmatch(rf"(#[0-9a-f]{{16}}) file: {name}\n{told}\n\1 end of file\n{re.escape(WHO)}", text) is not None


def picture(id: str) -> dict[str, Any]:
    return {"type": "input_image", "file_id": id, "detail": "low"}


def chat(*files: dict[str, Any], **more: Any) -> dict[str, Any]:
    parts: list[Any] = [*({"type": "file", "file": one} for one in files), {"type": "text", "text": WHO}]
    return {"model": "demo", "messages": [{"role": "user", "content": parts}], **more}


async def test_a_file_in_a_message_is_read(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path, CHAIN)) as run:
        kept = await upload(run, pdf("The lantern, by Mabel"), "x.pdf")
        sent = "data:text/plain;base64," + base64.b64encode(LANTERNS).decode()
        told = await call(run, "POST", "/chat/completions", A, 200, **chat({"file_id": kept}, store=True))
        assert fenced(contents_sent(run)[-1], "x.pdf", "The lantern, by Mabel")
        await call(run, "GET", f"/chat/completions/{told['id']}/messages")
        await call(run, "POST", "/chat/completions", A, 200, **chat({"file_data": sent}))
        assert fenced(contents_sent(run)[-1], "file.txt", re.escape(LANTERNS.decode()))
        kept = await upload(run, pdf("The orchard, by Tom"), "y.pdf")
        parts = [{"type": "input_file", "file_id": kept}, {"type": "input_text", "text": WHO}]
        made = await call(run, "POST", "/responses", A, 200, model="demo", input=[{"role": "user", "content": parts}])
        assert fenced(contents_sent(run)[-1], "y.pdf", "The orchard, by Tom")
        more = {"model": "demo", "input": "And when?", "previous_response_id": made["id"]}
        await call(run, "POST", "/responses", A, 200, **more)  # it is stored as the text that was read
        assert fenced(contents_sent(run)[0], "y.pdf", "The orchard, by Tom") and contents_sent(run)[-1] == "And when?"


async def test_an_image_stored_as_a_file_reaches_the_model(start: Start, database_url: str, tmp_path: Path) -> None:
    text = config(database_url, tmp_path, CHAIN) + f"requests: {{max_image_bytes: {len(PNG)}}}\n"
    async with start(text) as run:
        ids = [await upload(run, *one) for one in ((PNG, "a.png"), (b"words", "a.txt"), (PNG + b"more", "b.png"))]
        asked = {"model": "demo-vision", "input": [{"role": "user", "content": [picture(ids[0])]}]}
        made = await call(run, "POST", "/responses", A, 200, **asked)
        bodies = [one.body for one in run.ollama.seen if one.path == "/api/chat" and one.body.get("messages")]
        assert bodies[-1]["messages"][0]["images"] == [base64.b64encode(PNG).decode()]
        (item,) = (await call(run, "GET", f"/responses/{made['id']}/input_items"))["data"]
        part = item["content"][0]
        assert (part["image_url"], part["file_id"], part["detail"]) == (data_url(), None, "low")
        for who, id, status, code in (
            (A, ids[1], 400, "unsupported_image"),
            (A, ids[2], 400, "image_too_large"),
            (A, "file-x", 404, "file_not_found"),
            (B, ids[0], 404, "file_not_found"),
        ):
            asked["input"] = [{"role": "user", "content": [picture(id)]}]
            error = (await call(run, "POST", "/responses", who, status, **asked))["error"]
            assert (error["code"], error["param"]) == (code, "input[0].content[0].file_id")


async def test_files_in_items_of_conversations_are_read(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path, ("conversations", *CHAIN[1:]))) as run:
        ids = [await upload(run, LANTERNS), await upload(run, PNG, "a.png")]
        parts = [{"type": "input_file", "file_id": ids[0]}, {"type": "input_text", "text": WHO}, picture(ids[1])]
        items = [{"role": "user", "content": parts}]
        talk = await call(run, "POST", "/conversations", A, 200, items=items)
        path = f"/conversations/{talk['id']}/items?include=message.input_image.image_url"
        (item,) = (await call(run, "GET", path))["data"]
        ConversationItem.validate_python(item)
        told, _, seen_ = item["content"]
        assert LANTERNS.decode() in told["text"] and seen_["image_url"] == data_url()
        await call(run, "POST", path.partition("?")[0], A, 200, items=items)
        hi = {"model": "demo-vision", "messages": [{"role": "user", "content": "hi"}], "conversation": talk["id"]}
        await call(run, "POST", "/chat/completions", A, 200, **hi)
        assert [LANTERNS.decode() in one for one in contents_sent(run)] == [True, True, False]
        error = (await call(run, "POST", "/conversations", B, 404, items=items))["error"]
        assert (error["code"], error["param"]) == ("file_not_found", "items[0].content[0].file_id")
        wrong = [{"role": "user", "content": [{"type": "input_file", "file_id": "file-x"}], "status": "odd"}]
        error = (await call(run, "POST", "/conversations", A, 400, items=wrong))["error"]
        assert error["param"] == "items[0].status", "cheap checks come first"


async def test_the_search_uses_the_question_and_not_the_attached_file(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        told = {"title": "Lanterns", "content": LANTERNS.decode(), "wait": 30}
        async with run.http.post(f"{run.url}/api/rag/documents", json=told, headers=A) as response:
            assert response.status == 201
        await upload(run, ORCHARDS)
        file = {"file_data": base64.b64encode(ORCHARDS * 100).decode(), "filename": "orchards.txt"}
        answer = await call(run, "POST", "/chat/completions", A, 200, **chat(file, rag=True))
        assert [one["title"] for one in answer["choices"][0]["message"]["sources"]] == ["Lanterns"]
        assert ORCHARDS.decode() in contents_sent(run)[-1] and LANTERNS.decode() in contents_sent(run)[-1]


@pytest.mark.parametrize(
    ("file", "status", "field", "code"),
    [
        ({"file_id": "file-x"}, 404, "file_id", "file_not_found"),
        ({"file_data": base64.b64encode(b"a\0b").decode(), "filename": "a.txt"}, 400, "file_data", "unreadable_file"),
        ({"file_data": base64.b64encode(b"abc").decode(), "filename": "a.exe"}, 400, "file_data", "unsupported_file"),
        ({"file_data": "%"}, 400, "file_data", "invalid_base64"),
        (
            {"file_data": base64.b64encode(b"a" * 300).decode(), "filename": "a.txt"},
            400,
            "file_data",
            "file_too_large",
        ),
    ],
)
async def test_an_unreadable_file_is_an_error_naming_the_part(
    start: Start, tmp_path: Path, file: dict[str, str], status: int, field: str, code: str
) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path, max_file_bytes=200)) as run:
        error = (await call(run, "POST", "/chat/completions", A, status, **chat(file)))["error"]
        assert (error["param"], error["code"]) == (f"messages[0].content[0].file.{field}", code)
        parts = [{"type": "input_file", **file}]
        body = {"model": "demo", "input": [{"role": "user", "content": parts}]}
        error = (await call(run, "POST", "/responses", A, status, **body))["error"]
        assert (error["param"], error["code"]) == (f"input[0].content[0].{field}", code)


async def test_another_callers_file_is_not_found_and_invalid_calls_read_no_file(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        mine = await upload(run, LANTERNS)
        await call(run, "POST", "/chat/completions", B, 404, **chat({"file_id": mine}))
        wrong = chat({"file_id": "file-x"}, temperature="hot")
        told = await call(run, "POST", "/chat/completions", A, 400, **wrong)
        assert told["error"]["param"] == "temperature"


async def test_without_the_plugin_files_in_messages_are_refused(start: Start) -> None:
    async with start("chains: {chat: []}\n") as run:
        for path, param, body in (
            ("/chat/completions", "messages[0].content[0].file", chat({"file_id": "file-x"})),
            (
                "/responses",
                "input[0].content[0]",
                {"model": "demo", "input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]},
            ),
        ):
            error = (await call(run, "POST", path, A, 400, **body))["error"]
            assert (error["param"], error["code"]) == (param, "plugin_missing")


async def test_the_number_of_files_waiting_to_be_read_is_limited() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"words"

    extractor = FileTextExtractor(FileConverter(2**30, 30.0, 1000, asyncio.Semaphore(0)), 1000)
    several = [asyncio.ensure_future(extractor.text("a.txt", pieces(), 1000)) for _ in range(MOST)]
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await extractor.text("a.txt", pieces(), 1000)
    for one in several:
        one.cancel()
    await asyncio.wait(several)  # each closes its file before it ends
    assert not extractor.at_once
