"""Files as documents: readable ones are found, others are refused with a reason, and none does harm."""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import aiohttp
import docx
import pytest
import uvloop

from plugins.documents.files import FileConverter
from tests.conftest import Running, Start
from tests.plugins.documents.asking import A, ask, config, titles


async def send(run: Running, name: str, data: bytes, **fields: str) -> tuple[int, Any]:
    form = aiohttp.FormData()
    for field, value in {"wait": "30", **fields}.items():
        form.add_field(field, value)
    form.add_field("file", io.BytesIO(data), filename=name)
    async with run.http.post(f"{run.url}/api/rag/documents", data=form, headers=A) as response:
        return response.status, await response.json()


async def content(run: Running, id: str) -> str:
    async with run.http.get(f"{run.url}/api/rag/documents/{id}/content", headers=A) as response:
        return await response.text()


def word() -> bytes:
    document = docx.Document()
    document.add_heading("Lighthouses", 1)
    document.add_paragraph("The keeper was Mabel Quill.")
    table = document.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Height", "31 m"
    document.save(packed := io.BytesIO())
    return packed.getvalue()


def pdf(*pages: str) -> bytes:
    """A minimal PDF with one page per text."""
    count = len(pages)
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Count {count}/Kids[{' '.join(f'{4 + 2 * n} 0 R' for n in range(count))}]>>".encode(),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
        font = "/Resources<</Font<</F1 3 0 R>>>>"
        objects.append(f"<</Type/Page/Parent 2 0 R{font}/Contents {5 + 2 * number} 0 R>>".encode())
        objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream))
    made, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(made))
        made += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    return (
        made + head + table + b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(made))
    )


PAGE = (
    b"<html><head><title>Lights</title><style>p {color: red}</style></head><body><script>alert('canary')</script>"
    b"<h2>Towers</h2><p>The keeper   was\n<b>Mabel</b> Quill.</p><ul><li>oil</li><li>wick</li></ul>"
    b"<table><tr><th>Height<td>31 m</table><pre>a\n  b</pre></body></html>"
)
PAGE_TEXT = "# Lights\n\n## Towers\n\nThe keeper was Mabel Quill.\n\n- oil\n- wick\n\n | Height | 31 m\n\na\n  b"
QUOTES = b"name,said\n" + b"East,late\n" * 1000 + b'West,"He said ""oil, please""",more\n'
"""What quotes mean does not hang on whether there are any at its beginning; and a row may have more than was named."""
GOOD: list[tuple[str, bytes, str]] = [
    ("a.txt", "Höhe über Normal".encode(), "Höhe über Normal"),
    ("latin.txt", "Höhe".encode("cp1252"), "Höhe"),
    ("wide.txt", "Höhe wide".encode("utf-16"), "Höhe wide"),
    ("a.md", b"\xef\xbb\xbf# Title\r\n\r\nText.\r\n", "# Title\n\nText.\n"),
    ("a.csv", b'name;height\nEast;31\n"We;st";12\n', "name: East; height: 31\n\nname: We;st; height: 12\n\n"),
    ("quotes.csv", QUOTES, "name: East; said: late\n\n" * 1000 + 'name: West; said: He said "oil, please"; more\n\n'),
    ("a.jsonl", b'{"name": "East", "of": [1]}\n\n"x"\n', "name: East\nof: [1]\n\nx\n\n"),
    ("a.html", PAGE, PAGE_TEXT),
    ("a.docx", word(), "# Lighthouses\n\nThe keeper was Mabel Quill.\n\nHeight | 31 m\n\n"),
    ("wrong.txt", pdf("One page", "Another"), "One page\n\fAnother\n"),
]


async def test_files_of_all_kinds_are_read(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        for name, data, text in GOOD:
            status, told = await send(run, name, data)
            assert (status, told.get("status"), told.get("title")) == (201, "ready", name), told
            assert await content(run, told["document_id"]) == text
        found = await ask(run, "POST", "/search", query="another", top_k=1, merge=False)
        assert (found["results"][0]["title"], found["results"][0]["page"]) == ("wrong.txt", 2)


async def test_a_file_has_its_fields_and_is_stored_once(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        about = {"title": "Tower", "source": "http://t.example", "metadata": '{"year": 1891}'}
        status, told = await send(run, "../../etc/x.txt", b"A tower by the sea.", **about)
        assert status == 201 and (told["title"], told["metadata"]) == ("Tower", {"year": 1891})
        status, again = await send(run, "y.txt", b"A tower by the sea.")
        assert status == 200 and again["duplicate"] and again["document_id"] == told["document_id"]
        text = "\n\n".join(f"Paragraph {number} of a long file, which says so." for number in range(8000))
        status, told = await send(run, "long.txt", text.encode())
        assert status == 201 and await content(run, told["document_id"]) == text
        whole = await ask(run, "POST", "/documents", A, 200, title="x", content=text)
        assert whole["document_id"] == told["document_id"]  # in either way of sending it
        assert await titles(run, "paragraph 7654", top_k=1) == ["long.txt"]


def bomb() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        packed.writestr("word/document.xml", b"<a>" + b"0" * 270_000_000)
    return made.getvalue()


HOSTILE: list[tuple[str, bytes, int, str]] = [
    ("x.exe", b"MZ", 400, "unsupported_file"),
    ("x", b"text", 400, "unsupported_file"),
    ("x.pdf", b"no pdf", 400, "unreadable_file"),
    ("x.docx", b"no word", 400, "unreadable_file"),
    ("x.pdf", b"%PDF-1.7\n" + b"<<" * 100_000, 400, "unreadable_file"),
    ("x.docx", b"PK\x03\x04" + b"\0" * 1000, 400, "unreadable_file"),
    ("x.txt", b"a\0b", 400, "unreadable_file"),
    ("x.html", b"<div>" * 200_000, 400, "unreadable_file"),
    ("x.jsonl", b"[" * 200_000 + b"\n", 400, "unreadable_file"),
    ("x.csv", b'a\n"' + b"x" * 2_000_000, 400, "unreadable_file"),
    ("x.txt", b"x" * 3_000_001, 413, "request_too_large"),
    ("x.txt", b" \n", 400, "unreadable_file"),
]


async def test_hostile_files_are_refused_without_harm(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path, max_file_bytes=3_000_000, read_timeout=10)) as run:
        for name, data, expected, code in HOSTILE:
            status, told = await send(run, name, data, wait="0")
            assert status == expected, (name, told)
            assert (told["error"]["code"], told["error"]["param"]) == (code, "file"), told
            assert "\n" not in told["error"]["message"]
        status, told = await send(run, "x.docx", bomb())
        assert status == 400 and "unpacks to more than" in told["error"]["message"]
        deep = b"<div>" * 9_000 + b"deep canary" + b"</div>" * 9_000
        status, told = await send(run, "deep.html", deep)
        assert told.get("status") == "ready" or told["error"]["code"] == "unreadable_file"
        line = b"word " * 100_000
        status, told = await send(run, "line.txt", line)
        assert status == 201 and told["chunks"] > 400
        assert (await run.chat()).status == 401 and (await run.http.get(f"{run.url}/healthz")).status == 200


FORM = "multipart/form-data; boundary=x"
SMALL = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
HEAD = b'--x\r\nContent-Disposition: form-data; name="a"\r\n'
LONG = b'--x\r\nContent-Disposition: form-data; name="title"\r\n\r\n' + b"t" * 70_000 + b"\r\n"


FORMS = {
    "empty": (b"", FORM, 400),
    "another boundary": (b"--y\r\n", FORM, 400),
    "no boundary": (b"--x--\r\n", "multipart/form-data", 400),
    "no parts": (b"--x--\r\n", FORM, 400),
    "many parts": (SMALL * 20 + b"--x--\r\n", FORM, 400),
    "a long part": (LONG + b"--x--\r\n", FORM, 413),
    "a long header": (HEAD + b"X-A: " + b"a" * 20_000 + b"\r\n\r\n1\r\n--x--\r\n", FORM, 400),
    "many headers": (HEAD + b"X-A: a\r\n" * 500 + b"\r\n1\r\n--x--\r\n", FORM, 400),
    "a header that is none": (HEAD + b"nonsense\r\n\r\n1\r\n--x--\r\n", FORM, 400),
}


async def test_an_invalid_form_is_refused(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run, asyncio.timeout(40):
        for name, (body, kind, status) in FORMS.items():
            headers = {**A, "Content-Type": kind}
            async with run.http.post(f"{run.url}/api/rag/documents", data=body, headers=headers) as got:
                assert got.status == status and (await got.json())["error"]["message"], name


def test_reading_a_file_does_not_fork_the_server() -> None:
    """A fork would block a server with much in memory for a quarter of a second."""
    forks: list[int] = []
    os.register_at_fork(before=lambda: forks.append(1))

    async def read() -> str:
        reader = FileConverter(2**30, 30.0, 1000, asyncio.Semaphore(1))
        with tempfile.TemporaryFile() as file:
            file.write(b"words")
            async with reader.content(file, "a.txt") as content:
                return "".join(content.parts())

    assert uvloop.run(read()) == "words" and not forks


async def test_files_are_not_closed_in_the_event_loop(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []

    class Told(io.FileIO):
        def close(self) -> None:
            closed.append(threading.get_ident())
            super().close()

    def made() -> Told:
        number, path = tempfile.mkstemp(dir=tmp_path)
        os.unlink(path)
        return Told(number, "rb+")

    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        monkeypatch.setattr(tempfile, "TemporaryFile", made)
        status, answer = await send(run, "a.txt", b"The keeper was Mabel Quill.")
    assert (status, answer["status"]) == (201, "ready") and len(closed) == 3
    assert threading.get_ident() not in closed
