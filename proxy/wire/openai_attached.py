"""Finds files in OpenAI's requests: `file` parts of chats, `input_file` parts of items, and pictures in items that are
given by a file's id.

Source: OpenAI's API reference, "Create chat completion", "Responses" and "Conversations".
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from proxy.errors import BadCall
from proxy.types import JSON
from proxy.wire import read

MOST: Final = 16
"""Maximum number of files in one request."""
ENDINGS: Final[Mapping[str, str]] = {
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/pdf": ".pdf",
    "application/json": ".json",
    "application/jsonl": ".jsonl",
    "application/x-ndjson": ".jsonl",
    "text/csv": ".csv",
    "text/html": ".html",
    "text/markdown": ".md",
    "text/plain": ".txt",
}
"""The file name extensions of these content types."""
TALKING: Final = ("user", "system", "developer")


@dataclass(frozen=True, slots=True)
class Attached:
    """A file in a message, which is replaced by an empty text until its contents are known.

    part: the placeholder in the message.  at: its path in the request.  id: of a stored file, or "".  data: of a file
    sent inline, or "".  name: given by the sender, or "".  picture: the fields of its part if it is shown to the model
    as a picture; None if its text is.
    """

    part: dict[str, JSON]
    at: str
    id: str
    data: str
    name: str
    picture: Mapping[str, JSON] | None = None

    def put(self, told: str) -> None:
        """Put the contents into the message.  told: the file's text, or a picture's data: URL."""
        if self.picture is None:
            self.part["text"] = told
        else:
            self.part.clear()
            self.part.update(self.picture, image_url=told)

    @property
    def field(self) -> str:
        """The path of the request's field that contains it."""
        return f"{self.at}.{'file_id' if self.id else 'file_data'}"

    def called(self) -> str:
        """Its name, with an extension by its content type if it has none."""
        name = self.name or "file"
        if "." in name or not self.data.startswith("data:"):
            return name
        kind = self.data[5:].partition(",")[0].partition(";")[0].strip().lower()
        return name + (ENDINGS.get(kind, ""))

    def bytes(self, most: int) -> bytes:
        """The bytes of an inline file, which is a data: URL or bare base64.  Raises BadCall."""
        head, comma, body = self.data.partition(",")
        if comma and not (head.startswith("data:") and head.endswith(";base64")):
            message = f"Invalid '{self.field}': expected base64, or a data: URL with it."
            raise BadCall(message, param=self.field, code="invalid_value")
        encoded = body if comma else head
        if len(encoded) * 3 // 4 > most + 3:
            message = f"Invalid '{self.field}': the file has more than {most} bytes."
            raise BadCall(message, param=self.field, code="file_too_large")
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            message = f"Invalid '{self.field}': not base64."
            raise BadCall(message, param=self.field, code="invalid_base64") from None


def of_chat(body: JSON) -> list[Attached]:
    """Replace the files in a chat's messages by placeholders.  The rest is not checked here.  Raises BadCall."""
    found = []
    for at, parts in lists(body, "messages", {"content": ("user",)}):
        for index, part in enumerate(parts):
            if type(part) is dict and part.get("type") == "file":
                name = f"{at}[{index}].file"
                told = read.mapping(read.needed(part, "file", name), name)
                parts[index] = {"type": "text", "text": ""}
                found.append(attached(told, name, parts[index]))
    return bounded(found)


def of_items(body: JSON, field: str = "input") -> list[Attached]:
    """The same for a list of items."""
    found = []
    for at, parts in lists(body, field, {"content": TALKING, "output": (None,)}):
        for index, part in enumerate(parts):
            if (make := attaching(part)) is not None:
                parts[index] = {"type": "input_text", "text": ""}
                found.append(make(part, f"{at}[{index}]", parts[index]))
    return bounded(found)


def attaching(part: JSON) -> Callable[[Mapping[str, JSON], str, dict[str, JSON]], Attached] | None:
    """The function that reads a part with a file; None if the part has none."""
    if type(part) is not dict:
        return None
    if part.get("type") == "input_image" and part.get("file_id") is not None:
        return pictured
    return attached if part.get("type") == "input_file" else None


def lists(body: JSON, field: str, where: Mapping[str, tuple[str | None, ...]]) -> Iterator[tuple[str, list[JSON]]]:
    """The lists of parts that may contain files, with their paths.  where: for each field, the roles of its items."""
    given = body.get(field) if type(body) is dict else None
    for index, one in enumerate(given if type(given) is list else ()):
        for name, roles in where.items() if type(one) is dict else ():
            if one.get("role") in roles and type(parts := one.get(name)) is list:
                yield f"{field}[{index}].{name}", parts


def bounded(found: list[Attached]) -> list[Attached]:
    if len(found) > MOST:
        at = found[MOST].at
        raise BadCall(f"Invalid '{at}': more than {MOST} files.", param=at, code="too_many_files")
    return found


def attached(given: Mapping[str, JSON], at: str, part: dict[str, JSON]) -> Attached:
    if given.get("file_url") is not None:
        message = f"'{at}.file_url' is not supported: nothing is fetched; send 'file_data' or 'file_id'."
        raise BadCall(message, param=f"{at}.file_url", code="unsupported_parameter")
    told = {
        name: read.filled(value, f"{at}.{name}")
        for name in ("file_id", "file_data", "filename")
        if (value := given.get(name)) is not None
    }
    if "file_id" in told and "file_data" in told:
        message = f"'{at}' has both 'file_id' and 'file_data'; send only one of them."
        raise BadCall(message, param=at, code="invalid_parameter_combination")
    if "file_id" not in told:
        read.needed(told, "file_data", f"{at}.file_data")
    return Attached(part, at, told.get("file_id", ""), told.get("file_data", ""), told.get("filename", ""))


def pictured(given: Mapping[str, JSON], at: str, part: dict[str, JSON]) -> Attached:
    if given.get("image_url") is not None:
        message = f"'{at}' has both 'file_id' and 'image_url'; send only one of them."
        raise BadCall(message, param=at, code="invalid_parameter_combination")
    id = read.filled(given["file_id"], f"{at}.file_id")
    return Attached(part, at, id, "", "", {**given, "file_id": None})
