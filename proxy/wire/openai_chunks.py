"""What an OpenAI-compatible server answers, whole or in chunks -> Events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import orjson

from proxy.errors import ProxyError, UpstreamError
from proxy.types import JSON, Event, Finish, Text, Thinking, ToolCalled, Usage, Vectors
from proxy.wire import openai_refusals
from proxy.wire.ids import new_id
from proxy.wire.told import count, number, text

BROKEN = ("abort", "error", "cancelled")
"""Why a server says that it ended an answer which it did not end well."""


ReadError: TypeAlias = Callable[[int, bytes, str], ProxyError]


class AnswerReader:
    """Reads the chunks of one answer, or its only document, of chats and of completions.

    top: alternatives a token that were asked for; some servers tell more.  error_of: what an error of theirs means.
    """

    def __init__(self, model: str, top: int = 0, error_of: ReadError = openai_refusals.error_of) -> None:
        self.model = model
        self.top = top
        self.error_of = error_of
        self.calls = Calls()
        self.called = self.finished = False
        self.done = False
        """Whether the server has said that nothing more comes."""
        self.usage: Usage | None = None

    def read(self, payload: bytes) -> list[Event]:
        """Raises UpstreamError, or the error that the payload tells of."""
        if payload == b"[DONE]" or self.done:
            self.done = True
            return []
        try:
            data = orjson.loads(payload)
            if data.get("error") or data.get("object") == "error":  # as FastChat's heirs say it
                raise self.failure(payload)
            if usage := data.get("usage"):
                self.usage = usage_of(usage)
            choices = (data.get("choices") or ()) if usage else data["choices"]  # some tell it alone, without a list
            return [event for choice in choices for event in self.of(choice)]
        except (ValueError, KeyError, TypeError, AttributeError):  # JSON that is none is a ValueError
            raise UpstreamError("The upstream sent something that is not a valid answer.", "server") from None

    def failure(self, payload: bytes) -> ProxyError:
        return self.error_of(200, payload, self.model)

    def end(self) -> list[Event]:
        """What is known when nothing more comes.  Raises UpstreamError if that was too early."""
        if not self.finished:
            raise UpstreamError("The upstream's answer ended before it was complete.", "cut")
        return [self.usage] if self.usage else []

    def of(self, choice: dict[str, JSON]) -> Iterator[Event]:
        said = choice.get("delta") or choice.get("message") or choice
        if thought := said.get("reasoning_content") or said.get("reasoning"):
            yield Thinking(text(thought))
        words, refusal = said.get("content") or choice.get("text"), said.get("refusal")
        if logprobs := self.logprobs(choice.get("logprobs")):
            # In a chunk they are the thought's if it is one; in a document nobody can tell.
            if words or not thought:
                yield Text(text(words or ""), 0, logprobs)
        elif words:
            yield Text(text(words))
        if refusal:
            yield Text(text(refusal))
        yield from self.calling(said.get("tool_calls") or (), whole="message" in choice)
        if reason := choice.get("finish_reason"):
            yield from self.finish(text(reason), bool(refusal))

    def calling(self, pieces: JSON, whole: bool) -> Iterator[ToolCalled]:
        for place, piece in enumerate(pieces):
            self.called = True
            yield from self.calls.add(piece, place if whole else piece.get("index"))

    def finish(self, reason: str, refused: bool) -> Iterator[Event]:
        if reason in BROKEN:
            raise UpstreamError(f"The upstream aborted the answer: {reason}.", "cut")
        yield from self.calls.end(cut=reason == "length")
        self.finished = True
        if self.called and reason in ("stop", "function_call"):  # as some servers end a call that was forced
            reason = "tool_calls"
        yield Finish("content_filter" if refused and reason == "stop" else reason)

    def logprobs(self, told: JSON) -> tuple[Mapping[str, JSON], ...]:
        """Those of chats; completions have four lists of their own, except where they have not."""
        if not told:
            return ()
        if "tokens" in told:
            alternatives = told.get("top_logprobs") or [None] * len(told["tokens"])
            rows = zip(told["tokens"], told["token_logprobs"], alternatives, strict=True)
            return tuple(self.legacy(*row) for row in rows)
        return tuple(
            {**entry(one), "top_logprobs": [entry(other) for other in (one.get("top_logprobs") or ())[: self.top]]}
            for one in told.get("content") or ()
        )

    def legacy(self, token: str, logprob: float | None, others: Mapping[str, float] | None) -> Mapping[str, JSON]:
        best = sorted((others or {}).items(), key=lambda one: -one[1])[: self.top]
        return {**spelled(token, logprob), "top_logprobs": [spelled(*one) for one in best]}


def entry(one: Mapping[str, JSON]) -> dict[str, JSON]:
    return {"token": text(one["token"]), "logprob": likely(one["logprob"]), "bytes": one.get("bytes")}


def spelled(token: str, logprob: float | None) -> dict[str, JSON]:
    return {"token": token, "logprob": likely(logprob), "bytes": list(token.encode())}


def likely(logprob: JSON) -> float:
    """null is what JSON makes of minus infinity."""
    return -9999.0 if logprob is None else number(logprob)


def usage_of(told: Mapping[str, JSON]) -> Usage:
    asked, made = told.get("prompt_tokens_details") or {}, told.get("completion_tokens_details") or {}
    return Usage(
        count(told.get("prompt_tokens")),
        count(told.get("completion_tokens")),
        count(asked.get("cached_tokens")),
        thinking_tokens=count(made.get("reasoning_tokens")),
    )


class Begun:
    """A call of a function, as far as it has come."""

    def __init__(self) -> None:
        self.id = self.name = ""
        self.parts: list[str] = []

    @property
    def arguments(self) -> str:
        return "".join(self.parts)

    @property
    def is_whole(self) -> bool:
        return bool(self.name) and is_object(self.arguments)

    def called(self) -> ToolCalled:
        return ToolCalled(self.id or new_id("call_"), self.name, self.arguments or "{}")


class Calls:
    """Calls of functions, put together from their pieces, which may come in turn; each is given once, when it is whole,
    and in the order in which they began."""

    def __init__(self) -> None:
        self.open: dict[int, Begun] = {}
        self.last = 0

    def add(self, piece: Mapping[str, JSON], index: int | None) -> Iterator[ToolCalled]:
        """The calls before this one that are whole, if a new one begins: by its index, or, where that is the same for
        all or there is none, by its id."""
        id, function = text(piece.get("id") or ""), piece.get("function") or {}
        name, arguments = text(function.get("name") or ""), function.get("arguments") or ""
        words = orjson.dumps(arguments).decode() if isinstance(arguments, dict) else text(arguments)
        self.last = self.last if index is None else index
        one = self.open.get(self.last)
        if one is not None and id and one.id and id != one.id:
            yield from self.end()
            one = None
        if one is None:
            if not (id or name or words.strip()):  # nothing, of a call that was given
                return
            yield from self.whole()
            one = self.open[self.last] = Begun()
        one.id, one.name = one.id or id, one.name or name
        one.parts.append(words)

    def whole(self) -> Iterator[ToolCalled]:
        for index, one in list(self.open.items()):
            if not one.is_whole:
                return
            yield self.open.pop(index).called()

    def end(self, cut: bool = False) -> Iterator[ToolCalled]:
        """cut: the model was stopped, so that a call may be half of one, which is none."""
        found, self.open = self.open, {}
        for one in found.values():
            if one.is_whole or (one.name and not one.arguments):
                yield one.called()
            elif not cut:
                raise UpstreamError(
                    "The model called a function with arguments that are not a JSON object.", "invalid_answer"
                )


def is_object(arguments: str) -> bool:
    try:
        return type(orjson.loads(arguments)) is dict
    except orjson.JSONDecodeError:
        return False


def vectors_of(document: bytes, wanted: int, dimensions: int | None = None) -> tuple[Vectors, Usage]:
    """One /embeddings document: `wanted` rows of unit length in the order of the inputs, and what they took.

    dimensions: as many of them at most, for servers that give a model's own whatever is asked.
    Raises UpstreamError.
    """
    import numpy as np

    try:
        data = orjson.loads(document)
        rows = sorted(data["data"], key=lambda row: row["index"])
        values = np.asarray([row["embedding"] for row in rows], dtype=np.float32)
        usage = Usage(count((data.get("usage") or {}).get("prompt_tokens")), 0)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        raise UpstreamError("The upstream sent embeddings that cannot be read.", "server") from None
    found = len(values) if values.ndim == 2 else 0
    if found != wanted:
        raise UpstreamError(f"The upstream sent {found} embeddings for {wanted} inputs.", "server")
    values = values[:, :dimensions]
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        raise UpstreamError("The upstream sent embeddings that are not numbers.", "server")
    return Vectors(np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)), usage
