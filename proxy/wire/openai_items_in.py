"""Checks the items in requests for OpenAI's responses and conversations, and completes them.

Source: OpenAI's API reference, "Responses" and "Conversations".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from proxy.errors import BadCall
from proxy.types import JSON
from proxy.wire import openai_file_search as file_search
from proxy.wire import openai_messages, read
from proxy.wire.ids import new_id
from proxy.wire.openai_items import REFERENCE, Item, placed, said
from proxy.wire.openai_messages import Limits

SANE: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
PREFIXES: Final = {"message": "msg_", "function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_",
            file_search.CALL: "fs_"}  # fmt: skip
ROLES: Final = ("user", "assistant", "system", "developer")
STATUSES: Final = ("completed", "incomplete", "in_progress")
CITED: Final[Mapping[str, tuple[str, ...]]] = {
    "file_citation": ("file_id", "filename", "index"),
    "url_citation": ("url", "title", "start_index", "end_index"),
    "container_file_citation": ("container_id", "file_id", "filename", "start_index", "end_index"),
    "file_path": ("file_id", "index"),
}
"""Types of annotations, which name an answer's sources, and their fields.  Those that end with `index` are integers."""


def items(value: JSON, at: str, limits: Limits, response: str = "") -> list[Item]:
    """A request's items, checked and completed.  A text becomes one user message.

    An item without an id, or with the same id as another, gets a new one, which contains the response's id.
    response: the response's id, if items may refer to others; references remain unchanged.
    Raises BadCall, which names the first field that is wrong or not supported.
    """
    if type(value) is str:
        value = [{"role": "user", "content": read.filled(value, at)}]
    given = enumerate(read.array(value, at))
    made = [item(one, f"{at}[{index}]", limits, bool(response)) for index, one in given]
    return distinct(made, response)


def distinct(made: Sequence[Item], response: str = "") -> list[Item]:
    """The items with unique ids, which paging needs.  response: as for `items`."""
    seen: set[str] = set()
    found = []
    for index, one in enumerate(made):
        if (not one["id"] or one["id"] in seen) and one["type"] != REFERENCE:
            prefix = PREFIXES[one["type"]]
            one = {**one, "id": placed(response, prefix, index, 4) if response else new_id(prefix)}
        seen.add(one["id"])
        found.append(one)
    return found


def item(value: JSON, at: str, limits: Limits, referring: bool) -> Item:
    """A checked and completed item; without an id it gets "".  referring: whether it may be a reference."""
    given = read.mapping(value, at)
    kind = _kind(given, at)
    if kind == REFERENCE:
        return _reference(given, at, referring)
    id, told = _id(given.get("id"), at), READERS[kind](given, at, limits)
    return {"id": id, "type": kind, **told, "status": _status(given, at)}


def _kind(given: Item, at: str) -> str:
    kind: JSON = given.get("type")
    if kind is None:
        kind = "message" if "role" in given else REFERENCE if set(given) == {"id"} else None
    kind = read.text(read.needed({"type": kind}, "type", f"{at}.type"), f"{at}.type")
    if kind != REFERENCE and kind not in READERS:
        message = f"Items of type '{kind[:80]}' are not supported; those that are: {', '.join(READERS)}."
        raise BadCall(message, param=f"{at}.type", code="unsupported_item")
    return str(kind)


def _reference(given: Item, at: str, allowed: bool) -> Item:
    if not allowed:
        message = (
            f"'{at}' refers to an item, and none are kept here: that takes the plugin 'stored' in the chain 'chat'. "
            "Send the item itself, as some clients do where the request says 'store': false."
        )
        raise BadCall(message, param=at, code="unsupported_item")
    return {"id": _needed(given, "id", at), "type": REFERENCE}


def _id(value: JSON, at: str) -> str:
    """The id; "" if there is none, or an invalid one."""
    given = "" if value is None else read.text(value, f"{at}.id")
    return given if SANE.fullmatch(given) else ""


def _status(given: Item, at: str) -> str:
    status = given.get("status")
    known = file_search.STATUSES if given.get("type") == file_search.CALL else STATUSES
    return "completed" if status is None else read.one_of(status, f"{at}.status", known)


def _message(given: Item, at: str, limits: Limits) -> Item:
    role = read.one_of(read.needed(given, "role", f"{at}.role"), f"{at}.role", ROLES)
    content = read.needed(given, "content", f"{at}.content")
    if type(content) is str:
        return {"role": role, "content": [said(role, content)]}
    parts = read.array(content, f"{at}.content")
    if not parts and role != "assistant":
        raise BadCall(f"Invalid '{at}.content': the array is empty.", param=f"{at}.content", code="empty_array")
    made = [_part(one, f"{at}.content[{index}]", role, limits) for index, one in enumerate(parts)]
    return {"role": role, "content": made}


def _part(value: JSON, at: str, role: str, limits: Limits) -> Item:
    given = read.mapping(value, at)
    kinds = ("input_text", "output_text", "text", "refusal" if role == "assistant" else "input_image")
    kind = read.one_of(given.get("type"), f"{at}.type", kinds)
    if kind == "refusal":
        return {"type": kind, "refusal": read.text(read.needed(given, kind, f"{at}.{kind}"), f"{at}.{kind}")}
    if kind == "input_image":
        return _image(given, at, role, limits)
    made = said(role, read.text(read.needed(given, "text", f"{at}.text"), f"{at}.text"))
    if role == "assistant":
        cited = read.array(given.get("annotations") or [], f"{at}.annotations")
        made["annotations"] = [_annotation(one, f"{at}.annotations[{index}]") for index, one in enumerate(cited)]
    return made


def _annotation(value: JSON, at: str) -> Item:
    given = read.mapping(value, at)
    kind = read.one_of(given.get("type"), f"{at}.type", tuple(CITED))
    fields: Item = {"type": kind}
    for name in CITED[kind]:
        told, field = read.needed(given, name, f"{at}.{name}"), f"{at}.{name}"
        fields[name] = read.whole(told, field, 0, 2**31 - 1) if name.endswith("index") else read.text(told, field)
    return fields


def _image(given: Item, at: str, role: str, limits: Limits) -> Item:
    if role != "user":
        raise BadCall(f"Invalid '{at}': only user messages may have images.", param=at, code="invalid_value")
    if given.get("file_id") is not None:
        message = f"'{at}.file_id' is not supported: pictures are sent as 'image_url'."
        raise BadCall(message, param=f"{at}.file_id", code="unsupported_parameter")
    url = read.text(read.needed(given, "image_url", f"{at}.image_url"), f"{at}.image_url")
    openai_messages.image(url, f"{at}.image_url", limits)
    return {"type": "input_image", "image_url": url, "detail": _detail(given, at), "file_id": None}


def _detail(given: Item, at: str) -> str:
    detail = given.get("detail")
    return "auto" if detail is None else read.one_of(detail, f"{at}.detail", ("auto", "low", "high", "original"))


def _function_call(given: Item, at: str, limits: Limits) -> Item:
    spaced = {"namespace": _needed(given, "namespace", at)} if given.get("namespace") is not None else {}
    return {
        "call_id": _needed(given, "call_id", at),
        "name": _needed(given, "name", at),
        **spaced,
        "arguments": read.object_text(read.needed(given, "arguments", f"{at}.arguments"), f"{at}.arguments"),
    }


def _function_output(given: Item, at: str, limits: Limits) -> Item:
    output = read.needed(given, "output", f"{at}.output")
    if type(output) is not str:
        parts = enumerate(read.array(output, f"{at}.output"))
        output = [_output_part(one, f"{at}.output[{index}]", limits) for index, one in parts]
    return {"call_id": _needed(given, "call_id", at), "output": output}


def _output_part(value: JSON, at: str, limits: Limits) -> Item:
    given = read.mapping(value, at)
    kind = read.one_of(given.get("type"), f"{at}.type", ("input_text", "output_text", "text", "input_image"))
    if kind == "input_image":
        return _image(given, at, "user", limits)
    return said("tool", read.text(read.needed(given, "text", f"{at}.text"), f"{at}.text"))


def _reasoning(given: Item, at: str, limits: Limits) -> Item:
    """Drops reasoning that other servers have encrypted."""
    made = {
        name: [
            {"type": kind, "text": _needed(read.mapping(one, f"{at}.{name}"), "text", f"{at}.{name}", empty=True)}
            for one in read.array(given.get(name) or [], f"{at}.{name}")
        ]
        for name, kind in (("summary", "summary_text"), ("content", "reasoning_text"))
    }
    return {**made, "encrypted_content": None}


def _file_search(given: Item, at: str, limits: Limits) -> Item:
    return file_search.item(given, at)


def _needed(given: Item, name: str, at: str, empty: bool = False) -> str:
    value = read.needed(given, name, f"{at}.{name}")
    return read.text(value, f"{at}.{name}") if empty else read.filled(value, f"{at}.{name}")


READERS: Final[Mapping[str, Callable[[Item, str, Limits], Item]]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_output,
    "reasoning": _reasoning,
    file_search.CALL: _file_search,
}
