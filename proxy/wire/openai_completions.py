"""OpenAI's text completions, requests and answers.  Source: OpenAI's API reference, "Completions"."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import orjson

from proxy.errors import BadCall, ProxyError
from proxy.streams import Answer, Choice
from proxy.types import JSON, Complete, Event, Finish, Text, Usage
from proxy.wire import openai_fields as fields
from proxy.wire import read, sse
from proxy.wire.ids import new_id
from proxy.wire.openai_answer import usage_of
from proxy.wire.openai_embeddings import inputs
from proxy.wire.openai_errors import SseStyle, error_body
from proxy.wire.openai_fields import Asked, Field
from proxy.wire.openai_messages import Limits

MOST_PROMPTS = 128
MAX_TOKENS = 16
"""OpenAI's default: many completions have no natural end."""


@dataclass(slots=True)
class AskedCompletion(Asked):
    """A completion request, while it is parsed.  Its prompts are texts or lists of tokens."""

    prompts: list[str] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    suffix: str = ""
    echo: bool = False
    best_of: int = 1

    def complete(self, prompts: list[str]) -> Complete:
        return Complete(
            prompts=tuple(prompts),
            suffix=self.suffix,
            options={"max_tokens": MAX_TOKENS, **self.native, **self.options},
            logprobs=self.top_logprobs if self.logprobs else None,
            n=self.n,
            best_of=max(self.best_of, self.n),
        )


def read_completion(body: JSON, limits: Limits, theirs: Collection[str] = ()) -> AskedCompletion:
    """Parse and check a body.  Raises BadCall, which names the first field that is wrong or not supported."""
    if type(body) is not dict:
        raise BadCall(f"The body must be a JSON object, but is {read.kind_of(body)}.", code="invalid_type")
    asked = AskedCompletion(limits)
    fields.read_fields(asked, body, FIELDS, theirs)
    read.filled(read.needed(body, "model", "model"), "model")
    read.needed(body, "prompt", "prompt")
    if asked.best_of < asked.n and body.get("best_of") is not None:
        raise BadCall("'best_of' must be at least 'n'.", param="best_of", code="invalid_value")
    if max(len(asked.prompts), len(asked.tokens)) * max(asked.n, asked.best_of) > MOST_PROMPTS:
        message = f"Invalid 'prompt': more than {MOST_PROMPTS} answers in one call."
        raise BadCall(message, param="prompt", code="array_above_max_length")
    if asked.best_of > asked.n and asked.stream:
        raise BadCall("The best of several answers cannot be streamed.", param="best_of", code="invalid_value")
    if asked.echo and asked.logprobs:
        message = "'echo' with 'logprobs' is not supported: Ollama gives no logprobs for a prompt."
        raise BadCall(message, param="echo", code="unsupported_parameter")
    return asked


def read_prompt(asked: Asked, value: JSON, at: str) -> None:
    if isinstance(asked, AskedCompletion):
        asked.prompts, asked.tokens = inputs(value, MOST_PROMPTS, at)


def read_suffix(asked: Asked, value: JSON, at: str) -> None:
    if isinstance(asked, AskedCompletion):
        asked.suffix = read.text(value, at)


def read_echo(asked: Asked, value: JSON, at: str) -> None:
    if isinstance(asked, AskedCompletion):
        asked.echo = read.flag(value, at)


def read_best_of(asked: Asked, value: JSON, at: str) -> None:
    if isinstance(asked, AskedCompletion):
        asked.best_of = read.whole(value, at, 1, asked.limits.max_choices)
        if asked.best_of > 1:
            asked.notes[at] = "emulated"


def read_logprobs(asked: Asked, value: JSON, at: str) -> None:
    asked.top_logprobs = read.whole(value, at, 0, 20)
    asked.logprobs = True


FIELDS: Mapping[str, Field] = {
    "model": Field("honoured", fields.read_model, "Name or alias of a model."),
    "prompt": Field(
        "honoured",
        read_prompt,
        "A string, a list of strings, a list of tokens or of such lists (cl100k_base); given to the model unchanged.",
    ),
    "suffix": Field("honoured", read_suffix, "For models that can insert; others are a 400."),
    "max_tokens": Field("honoured", fields.read_option("max_tokens"), f"At least 1; {MAX_TOKENS} when absent."),
    "temperature": Field("honoured", fields.read_option("temperature"), "0 to 2."),
    "top_p": Field("honoured", fields.read_option("top_p"), "0 to 1."),
    "presence_penalty": Field("honoured", fields.read_option("presence_penalty"), "-2 to 2."),
    "frequency_penalty": Field("honoured", fields.read_option("frequency_penalty"), "-2 to 2."),
    "seed": Field("honoured", fields.read_option("seed"), "As for chats."),
    "stop": Field("honoured", fields.read_option("stop"), f"A string, or up to {fields.MOST_STOPS} of them."),
    "n": Field("emulated", fields.read_n, "That many calls for each prompt; limited by `requests.max_choices`."),
    "best_of": Field(
        "emulated", read_best_of, "The likeliest of that many answers, by the mean logprob of their tokens."
    ),
    "echo": Field("honoured", read_echo, "The prompt before the answer."),
    "logprobs": Field("honoured", read_logprobs, "0 to 20 alternatives per token, in the format of completions."),
    "stream": Field("honoured", fields.read_stream, "Server-sent events."),
    "stream_options": Field("honoured", fields.read_stream_options, "`include_usage`; others are ignored."),
    "options": Field("honoured", fields.read_options, "Ollama's sampling options, as for chats."),
    "user": Field("carried", fields.read_carried_text, "For the records."),
    "keep_alive": Field("ignored", fields.read_ignored, "Set by the operator."),
    "logit_bias": Field("refused", fields.read_refused, "Ollama has none."),
}


def renamed(error: ProxyError) -> None:
    """Change the field of an upstream's error from `messages` to `prompt`."""
    if error.param == "messages":
        error.renamed("prompt")


@dataclass(slots=True)
class CompletionStyle(SseStyle):
    """How to write the answer to one call.  model: the name in the request.  echoed: prompts before the answers."""

    model: str
    include_usage: bool = False
    echoed: tuple[str, ...] = ()
    n: int = 1
    id: str = field(default_factory=lambda: new_id("cmpl-"))
    created: int = field(default_factory=lambda: int(time.time()))

    def failed(self, error: ProxyError) -> bytes:
        renamed(error)
        return sse.data(error_body(error))

    def head(self, fingerprint: str) -> dict[str, JSON]:
        told = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return {**told, "system_fingerprint": fingerprint}

    def echo(self, index: int) -> str:
        return self.echoed[index // self.n] if self.echoed else ""

    def whole(self, answer: Answer, fingerprint: str) -> bytes:
        choices = [self.choice(index, one) for index, one in sorted(answer.choices.items())]
        return orjson.dumps({**self.head(fingerprint), "choices": choices, "usage": usage_of(answer.usage)})

    def choice(self, index: int, choice: Choice) -> dict[str, JSON]:
        return {
            "text": self.echo(index) + choice.text,
            "index": index,
            "logprobs": legacy(choice.logprobs, 0) if choice.logprobs else None,
            "finish_reason": choice.finish,
        }

    def chunks(self, fingerprint: str) -> CompletionChunks:
        return CompletionChunks(self, fingerprint)


def legacy(logprobs: list[Mapping[str, JSON]] | tuple[Mapping[str, JSON], ...], offset: int) -> dict[str, JSON]:
    """Logprobs in the form of completions: parallel lists, one of them with each token's offset in the text."""
    offsets = []
    for one in logprobs:
        offsets.append(offset)
        offset += len(one["token"])
    return {
        "tokens": [one["token"] for one in logprobs],
        "token_logprobs": [one["logprob"] for one in logprobs],
        "top_logprobs": [
            {other["token"]: other["logprob"] for other in one.get("top_logprobs") or ()} for one in logprobs
        ],
        "text_offset": offsets,
    }


class CompletionChunks:
    """Writes the events of one answer as chunks."""

    def __init__(self, style: CompletionStyle, fingerprint: str) -> None:
        self.style = style
        self.head = style.head(fingerprint)
        self.usage: Usage | None = None
        self.lengths: dict[int, int] = {}

    def write(self, event: Event) -> bytes:
        if isinstance(event, Usage):
            self.usage = event
        elif isinstance(event, Text):
            return self.opening(event.choice) + self.text(event)
        elif isinstance(event, Finish):
            return self.opening(event.choice) + self.chunk(event.choice, "", None, event.reason)
        return b""

    def opening(self, choice: int) -> bytes:
        """The prompt before a choice's first chunk, if it is to be echoed; otherwise b""."""
        if choice in self.lengths:
            return b""
        echo = self.style.echo(choice)
        self.lengths[choice] = len(echo)
        return self.chunk(choice, echo, None, None) if echo else b""

    def text(self, event: Text) -> bytes:
        offset = self.lengths[event.choice]
        self.lengths[event.choice] = offset + len(event.text)
        logprobs = legacy(event.logprobs, offset) if event.logprobs else None
        return self.chunk(event.choice, event.text, logprobs, None)

    def chunk(self, index: int, text: str, logprobs: JSON, finish: str | None) -> bytes:
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self.style.include_usage else {}
        return sse.data(orjson.dumps({**self.head, "choices": [choice], **usage}))

    def end(self) -> bytes:
        if not self.style.include_usage:
            return sse.DONE
        last = {**self.head, "choices": [], "usage": usage_of(self.usage)}
        return sse.data(orjson.dumps(last)) + sse.DONE
