"""Decodes request bodies as strictly as Go's encoding/json, with its error messages."""

import base64
import binascii
import string
from typing import Any

from .go_format import type_name
from .refusals import Refused

Body = dict[str, Any]

GO_TYPES: dict[type, str] = {
    str: "string",
    bool: "bool",
    int: "int",
    list: "[]interface {}",
    dict: "map[string]interface {}",
}
FIELDS: dict[str, type] = {
    "model": str,
    "name": str,
    "messages": list,
    "stream": bool,
    "options": dict,
    "tools": list,
    "truncate": bool,
    "shift": bool,
    "logprobs": bool,
    "top_logprobs": int,
    "prompt": str,
    "suffix": str,
    "system": str,
    "template": str,
    "context": list,
    "raw": bool,
    "images": list,
    "dimensions": int,
    "_debug_render_only": bool,
    "source": str,
    "destination": str,
    "from": str,
    "parameters": dict,
    "files": dict,
    "adapters": dict,
}
STRUCTS: dict[str, str] = {
    "ChatRequest": "model messages stream options tools truncate shift logprobs top_logprobs "
    "_debug_render_only format keep_alive think",
    "GenerateRequest": "model prompt suffix system template context stream raw images options truncate shift "
    "logprobs top_logprobs _debug_render_only format keep_alive think",
    "EmbedRequest": "model truncate dimensions options input keep_alive",
    "EmbeddingRequest": "model prompt options keep_alive",
    "ShowRequest": "model name system options",
    "DeleteRequest": "model name",
    "CopyRequest": "source destination",
    "PullRequest": "model name stream",
    "CreateRequest": "model name from files adapters system template stream parameters",
}
"""The fields of each request; those that are not in FIELDS are checked elsewhere."""
MESSAGE: dict[str, type] = {
    "role": str,
    "content": str,
    "thinking": str,
    "images": list,
    "tool_calls": list,
    "tool_name": str,
    "tool_call_id": str,
}
BASE64 = frozenset(string.ascii_letters + string.digits + "+/")


def checked(value: Any, want: type, where: str) -> Any:
    """The value, if it has the wanted type or is null.  Raises Refused."""
    if value is None or type(value) is want:
        return value
    if want is int and isinstance(value, float):
        raise unfit(f"number {value}", where, "int")
    raise unfit(type_name(value), where, GO_TYPES[want])


def unfit(found: str, where: str, want: str) -> Refused:
    return Refused(400, f"json: cannot unmarshal {found} into Go struct field {where} of type {want}")


def body_of(value: Any, struct: str) -> Body:
    """The fields of a body; known names are matched regardless of case, and null counts as absent."""
    if not isinstance(value, dict):
        raise Refused(400, f"json: cannot unmarshal {type_name(value)} into Go value of type api.{struct}")
    names = STRUCTS[struct].split()
    body = folded(value, frozenset(names))
    for name in names:
        if name in body and name in FIELDS:
            checked(body[name], FIELDS[name], f"{struct}.{name}")
    return body


def folded(value: Body, known: frozenset[str]) -> Body:
    """Go matches names of fields regardless of case, and null leaves a field at its default."""
    return {key.lower() if key.lower() in known else key: item for key, item in value.items() if item is not None}


def message_of(value: Any) -> Body:
    if not isinstance(value, dict):
        raise unfit(type_name(value), "ChatRequest.messages", "api.Message")
    message = folded(value, frozenset(MESSAGE))
    for name, want in MESSAGE.items():
        if name in message:
            checked(message[name], want, f".messages.{name}")
    for image in message.get("images", ()):
        checked_image(image, ".messages.images")
    for call in message.get("tool_calls", ()):
        _checked_call(call)
    return message


def _checked_call(call: Any) -> None:
    where = ".messages.tool_calls"
    checked(call, dict, where)
    function = checked((call or {}).get("function"), dict, f"{where}.function") or {}
    checked(function.get("name"), str, f"{where}.function.name")
    checked(function.get("arguments"), dict, f"{where}.function.arguments")


def checked_image(image: Any, where: str) -> bytes:
    """The bytes of an image: standard base64 with padding and no data: prefix."""
    text = str(checked(image, str, where) or "").replace("\n", "").replace("\r", "")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        bare = text.rstrip("=")
        at = next((place for place, char in enumerate(bare) if char not in BASE64), len(text))
        raise Refused(400, f"illegal base64 data at input byte {at}") from error
