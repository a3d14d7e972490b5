"""The prompt that a model sees, counted in simulated tokens."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from .generation_request import GenerationRequest, Message
from .models import Model
from .options import LoadOptions
from .refusals import TOO_LONG, Refused, exceeded

TOKEN = re.compile(r"\s*\w{1,4}|\s*[^\w\s]|\s+")
IMAGE_TOKENS = 768


def tokens_of(text: str) -> list[str]:
    """Simulated tokens of up to four letters; joined, they are the text."""
    return TOKEN.findall(text)


@dataclass(frozen=True, slots=True)
class Prompt:
    messages: tuple[Message, ...]
    text: str
    tokens: int

    def shared(self, before: str) -> int:
        """Number of tokens that are cached from the previous prompt; the last token is always evaluated."""
        length = common(self.text, before)
        return min(len(tokens_of(self.text[:length])), self.tokens - 1) if length else 0


def common(one: str, other: str) -> int:
    """Length of the common prefix, by bisection: comparing single characters is slow for long prompts."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one.startswith(other[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def prompt_of(ask: GenerationRequest, model: Model, wanted: LoadOptions) -> Prompt:
    """The prompt, shortened to the context; old messages are dropped silently, as in Ollama.  Raises Refused."""
    room = wanted.room(model)
    whole = _prompt(ask, model, ask.messages)
    if whole.tokens <= room or ask.raw:
        return _held(whole, room)
    if not ask.truncate:
        raise exceeded(whole.tokens, room)
    return _cut(_shortened(ask, model, whole, room), model, wanted)


def _held(prompt: Prompt, room: int) -> Prompt:
    if prompt.tokens > room:
        raise exceeded(prompt.tokens, room)
    return prompt


def _shortened(ask: GenerationRequest, model: Model, prompt: Prompt, room: int) -> Prompt:
    """The prompt without as many of the oldest messages as necessary; system messages and the last one are kept."""
    old = [place for place, message in enumerate(ask.messages[:-1]) if message.role != "system"]
    sizes = [_size(model, message) for message in ask.messages]
    tokens, gone = prompt.tokens, set[int]()
    for place in old:
        if tokens <= room:
            break
        tokens -= sizes[place]
        gone.add(place)
    return _prompt(ask, model, [item for place, item in enumerate(ask.messages) if place not in gone])


def _cut(prompt: Prompt, model: Model, wanted: LoadOptions) -> Prompt:
    room = wanted.room(model)
    if prompt.tokens <= room:
        return prompt
    if model.mode == "native":
        raise exceeded(prompt.tokens, room)
    if not wanted.shift:
        raise Refused(400, TOO_LONG)
    tokens, keep = tokens_of(prompt.text), min(4, room // 2)
    kept = tokens[:keep] + tokens[len(tokens) - max(room // 2 - keep, 1) :]
    return Prompt(prompt.messages, "".join(kept), len(kept))


def _prompt(ask: GenerationRequest, model: Model, messages: Iterable[Message]) -> Prompt:
    kept = tuple(messages)
    text = ask.messages[-1].content if ask.raw else _rendered(ask, model, kept)
    images = sum(message.images for message in kept) if model.can("vision") else 0
    return Prompt(kept, text, len(tokens_of(text)) + IMAGE_TOKENS * images)


def _rendered(ask: GenerationRequest, model: Model, messages: tuple[Message, ...]) -> str:
    offered = [[tool.name, tool.description, tool.parameters] for tool in ask.tools]
    tools = f"<|tools|>{orjson.dumps(offered).decode()}\n" if offered else ""
    return tools + "".join(_turn(model, message) for message in messages) + "<|assistant|>"


def _turn(model: Model, message: Message) -> str:
    # In native mode, Ollama does not forward previous thinking.
    thought = f"<think>{message.thinking}</think>" if model.mode == "rendered" and message.thinking else ""
    calls = "".join(f"<call>{name}{orjson.dumps(given).decode()}" for name, given in message.calls)
    return f"<|{message.role}|>{thought}{message.content}{calls}\n"


def _size(model: Model, message: Message) -> int:
    images = message.images if model.can("vision") else 0
    return len(tokens_of(_turn(model, message))) + IMAGE_TOKENS * images
