"""A script that converts a file to text in its own process, from standard input to UTF-8 on standard output.

It imports nothing of the server and may be killed at any time.  If it cannot read the file, it writes the reason to
standard error, in one line, and exits with status 3.  Headings become Markdown; a form feed separates pages.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import resource
import sys
import zipfile
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any, BinaryIO, NoReturn

UNREADABLE = 3
PIECE = 1 << 20
UNPACKED = 256 << 20
"""Maximum bytes of a compressed file after decompression."""
LONGEST_CELL = 1 << 20
BLOCKS = re.compile(
    "address|article|aside|blockquote|body|dd|details|div|d[lt]|fieldset|fig(caption|ure)|footer|form|header|hr|main|nav"
    "|[ou]l|p|pre|section|summary|table|t(body|foot|head)"
)
NESTED = re.compile(
    r"<(/?)(?:address|article|aside|blockquote|center|details|dialog|dir|div|dl|fieldset|figcaption|figure|footer|form"
    r"|header|hgroup|main|menu|nav|ol|pre|search|section|summary|ul)\b",
    re.IGNORECASE,
)
"""Elements that are never closed implicitly."""
DEEPEST = 10_000
SILENT = frozenset({"script", "style", "template", "noscript", "svg", "head"})


def refuse(reason: str) -> NoReturn:
    sys.stderr.write(reason)
    sys.exit(UNREADABLE)


def text(source: BinaryIO) -> Iterator[str]:
    """Plain text and Markdown: UTF-8, UTF-16 with a byte order mark, else Windows-1252."""
    data = source.read()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in data:
        refuse("it is no text: there are NUL bytes in it")
    else:
        encoding = "utf-8-sig" if valid(data) else "cp1252"
    yield from io.TextIOWrapper(io.BytesIO(data), encoding, "replace", newline=None)


def valid(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def table(source: BinaryIO) -> Iterator[str]:
    """One paragraph per row, with the name of each column before its value."""
    csv.field_size_limit(LONGEST_CELL)
    whole = "".join(text(source))
    # Only the delimiter is taken from the sniffer: if its sample has no quotes, it assumes that the file has none.
    try:
        separator = csv.Sniffer().sniff(whole[:8192], ",;\t|").delimiter
    except csv.Error:
        separator = ","
    rows = csv.reader(io.StringIO(whole), delimiter=separator, skipinitialspace=True)
    try:
        names = next(rows, [])
        for row in rows:
            cells = zip_longest(names, row, fillvalue="")
            told = [f"{name.strip()}: {cell.strip()}".removeprefix(": ") for name, cell in cells if cell.strip()]
            yield "; ".join(told) + "\n\n"
    except csv.Error as error:
        refuse(f"it is no table: {error}")


def lines(source: BinaryIO) -> Iterator[str]:
    """One paragraph per line of JSON, with the name of each field before its value."""
    for number, line in enumerate("".join(text(source)).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            refuse(f"line {number} is no JSON")
        fields = value.items() if isinstance(value, dict) else [("", value)]
        yield "\n".join(f"{name}: {plain(one)}".removeprefix(": ") for name, one in fields) + "\n\n"


def plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def html(source: BinaryIO) -> Iterator[str]:
    from selectolax.lexbor import LexborHTMLParser

    written = "".join(text(source))
    if deep(written):
        refuse("it is nested too deeply")
    tree = LexborHTMLParser(written)
    if (title := tree.css_first("title")) is not None:
        yield f"# {' '.join(title.text().split())}\n\n"
    for name in SILENT:
        for node in tree.css(name):
            node.decompose()
    if tree.body is None:
        return
    yield re.sub(r"[ \t]*\n[ \t\n]*\n", "\n\n", "".join(said(tree.body)).strip())


def deep(written: str) -> bool:
    """Whether nesting is too deep: for each such element the parser scans all open ones; a megabyte takes minutes."""
    depth = 0
    for found in NESTED.finditer(written):
        depth = max(0, depth - 1) if found[1] else depth + 1
        if depth > DEEPEST:
            return True
    return False


def said(root: Any) -> Iterator[str]:
    """The visible text, in document order."""
    for node in root.traverse(include_text=True):
        name = node.tag
        if name == "-text":
            yield node.text_content if preformatted(node) else re.sub(r"\s+", " ", node.text_content or "")
        elif re.fullmatch("h[1-6]", name):
            yield f"\n\n{'#' * int(name[1])} "
        elif name == "li":
            yield "\n- "
        elif name in ("td", "th"):
            yield " | "
        elif name in ("br", "tr"):
            yield "\n"
        elif BLOCKS.fullmatch(name):
            yield "\n\n"


def preformatted(node: Any) -> bool:
    return node.parent is not None and node.parent.tag in ("pre", "code")


def pdf(source: BinaryIO) -> Iterator[str]:
    import pypdf

    logging.disable()  # pypdf's warnings must not become the reason on standard error
    try:
        reader = pypdf.PdfReader(source)
        if reader.is_encrypted and not reader.decrypt(""):
            refuse("it is encrypted")
        for number, page in enumerate(reader.pages):
            yield ("\f" if number else "") + page.extract_text().replace("\f", "\n") + "\n"
    except pypdf.errors.PyPdfError as error:
        refuse(f"it is no PDF that can be read: {str(error)[:200]}")


def docx(source: BinaryIO) -> Iterator[str]:
    import docx as word
    from docx.opc.exceptions import PackageNotFoundError

    unpacked_within(source)
    try:
        document = word.Document(source)
    except (KeyError, ValueError, PackageNotFoundError) as error:
        refuse(f"it is no Word document: {str(error)[:200]}")
    for block in document.iter_inner_content():
        if hasattr(block, "rows"):
            yield "".join(f"{' | '.join(cell.text for cell in row.cells)}\n" for row in block.rows) + "\n"
        elif block.text.strip():
            style = block.style.name if block.style is not None else ""
            level = re.fullmatch(r"Heading ([1-6])", style or "")
            mark = f"{'#' * int(level[1])} " if level else "# " if style == "Title" else ""
            yield f"{mark}{block.text}\n\n"


def unpacked_within(source: BinaryIO) -> None:
    """Refuse a file that decompresses to too much; zipfile itself checks the declared sizes."""
    try:
        with zipfile.ZipFile(source) as packed:
            if sum(one.file_size for one in packed.infolist()) > UNPACKED:
                refuse(f"it unpacks to more than {UNPACKED >> 20} MiB")
    except (zipfile.BadZipFile, NotImplementedError) as error:
        refuse(f"it is no Word document: {error}")
    source.seek(0)


READERS: dict[str, Callable[[BinaryIO], Iterator[str]]] = {
    "text": text,
    "csv": table,
    "jsonl": lines,
    "html": html,
    "pdf": pdf,
    "docx": docx,
}


def bounded(memory: int, seconds: int, most: int) -> None:
    for what, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, most),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _, hard = resource.getrlimit(what)
        least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (least, least))


def main(kind: str, memory: str, seconds: str, most: str) -> None:
    bounded(int(memory), int(seconds), int(most))
    sys.setrecursionlimit(2000)
    try:
        for piece in READERS[kind](sys.stdin.buffer):
            sys.stdout.buffer.write(piece.encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
    except MemoryError:
        refuse("reading it takes too much memory")
    except RecursionError:
        refuse("it is nested too deeply")
    except OSError:
        refuse("there is too much text in it")


if __name__ == "__main__":
    main(*sys.argv[1:])
