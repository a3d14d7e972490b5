"""One request for a generation, parsed and checked."""

from dataclasses import dataclass, field, replace
from typing import Any

from .decode import Body, body_of, checked_image, message_of
from .go_format import parse_keep_alive, quoted
from .refusals import Refused
from .tools import Tool, tool_of

THINK_LEVELS = ("high", "medium", "low", "max")


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str = ""
    thinking: str = ""
    images: int = 0
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    path: str
    body: Body
    model: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    keep_alive: float | None = None
    think: bool | str | None = None
    stream: bool = True
    truncate: bool = True
    shift: bool | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    raw: bool = False
    suffix: str = ""

    @property
    def chats(self) -> bool:
        return self.path == "/api/chat"

    @property
    def empty(self) -> bool:
        """Whether it only loads or unloads the model."""
        return not self.messages if self.chats else not self.body.get("prompt")

    @property
    def unloads(self) -> bool:
        return self.empty and self.keep_alive == 0

    @property
    def images(self) -> int:
        return sum(message.images for message in self.messages)

    def but(self, **changes: Any) -> "GenerationRequest":
        return replace(self, **changes)


def parse_chat(value: Any) -> GenerationRequest:
    body = body_of(value, "ChatRequest")
    messages = tuple(_parse_message(message_of(item)) for item in body.get("messages", ()))
    tools = tuple(tool_of(item) for item in body.get("tools", ()))
    return _parse("/api/chat", body, messages).but(tools=tools)


def parse_generate(value: Any) -> GenerationRequest:
    """A prompt is a user message, after a system message if one is given."""
    body = body_of(value, "GenerateRequest")
    images = body.get("images", ())
    for image in images:
        checked_image(image, "GenerateRequest.images")
    system = (Message("system", body["system"]),) if body.get("system") else ()
    user = Message("user", body.get("prompt", ""), images=len(images))
    ask = _parse("/api/generate", body, (*system, user))
    return ask.but(raw=body.get("raw", False), suffix=body.get("suffix", ""))


def _parse(path: str, body: Body, messages: tuple[Message, ...]) -> GenerationRequest:
    think = _checked_think(body.get("think"))
    top = body.get("top_logprobs", 0)
    if not 0 <= top <= 20:
        raise Refused(400, "top_logprobs must be between 0 and 20")
    return GenerationRequest(
        path=path,
        body=body,
        model=body.get("model", ""),
        messages=messages,
        options=body.get("options", {}),
        keep_alive=parse_keep_alive(body.get("keep_alive")),
        think=think,
        stream=body.get("stream", True),
        truncate=body.get("truncate", True),
        shift=body.get("shift"),
        logprobs=body.get("logprobs", False),
        top_logprobs=top,
    )


def _parse_message(message: Body) -> Message:
    functions = [call.get("function") or {} for call in message.get("tool_calls", ())]
    return Message(
        role=message.get("role", "").lower(),
        content=message.get("content", ""),
        thinking=message.get("thinking", ""),
        images=len(message.get("images", ())),
        calls=tuple((item.get("name", ""), item.get("arguments") or {}) for item in functions),
        name=message.get("tool_name", ""),
    )


def _checked_think(value: Any) -> bool | str | None:
    if value is None or isinstance(value, bool) or value in THINK_LEVELS:
        return value  # type: ignore[no-any-return]  # just checked, in a way that mypy does not follow
    must = '(must be "high", "medium", "low", "max", true, or false)'
    if isinstance(value, str):
        raise Refused(400, f"invalid think value: {quoted(value)} {must}")
    raise Refused(400, "think must be a boolean or string " + must.replace("must be ", ""))


def schema_of(ask: GenerationRequest) -> dict[str, Any] | None:
    """The schema of the answer: None for free text, an empty one for any JSON."""
    wanted = ask.body.get("format")
    if wanted in (None, ""):
        return None
    if wanted == "json":
        return {}
    if isinstance(wanted, dict):
        return wanted
    text = quoted(wanted) if isinstance(wanted, str) else str(wanted)
    raise Refused(500, f'invalid format: {text}; expected "json" or a valid JSON Schema object')
