"""Answers of OpenAI-compatible servers, whole or in chunks -> Events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import orjson

from proxy.errors import ProxyError, UpstreamError
from proxy.types import JSON, Event, Finish, Text, Thinking, ToolCalled, Usage, Vectors
from proxy.wire import openai_refusals
from proxy.wire.ids import new_id
from proxy.wire.upstream_values import count, number, text

BROKEN = ("abort", "error", "cancelled")
"""Finish reasons with which servers report that an answer failed."""


ReadError: TypeAlias = Callable[[int, bytes, str], ProxyError]


class AnswerReader:
    """Reads the chunks of one streamed answer, or the only document of a whole one, of chats and of completions.

    top: number of alternatives per token that were requested; some servers send more.
    error_of: translates the server's errors.
    """

    def __init__(self, model: str, top: int = 0, error_of: ReadError = openai_refusals.error_of) -> None:
        self.model = model
        self.top = top
        self.error_of = error_of
        self.calls = Calls()
        self.called = self.finished = False
        self.done = False
        """Whether the server has sent `[DONE]`."""
        self.usage: Usage | None = None

    def read(self, payload: bytes) -> list[Event]:
        """The events of one payload.  Raises UpstreamError, or the error that the payload contains."""
        if payload == b"[DONE]" or self.done:
            self.done = True
            return []
        try:
            data = orjson.loads(payload)
            if data.get("error") or data.get("object") == "error":  # the form of FastChat and servers derived from it
                raise self.failure(payload)
            if usage := data.get("usage"):
                self.usage = usage_of(usage)
            choices = (
                (data.get("choices") or ()) if usage else data["choices"]
            )  # some send usage alone, without a list of choices
            return [event for choice in choices for event in self.of(choice)]
        except (ValueError, KeyError, TypeError, AttributeError):  # orjson's JSONDecodeError is a ValueError
            raise UpstreamError("The upstream sent something that is not a valid answer.", "server") from None

    def failure(self, payload: bytes) -> ProxyError:
        return self.error_of(200, payload, self.model)

    def end(self) -> list[Event]:
        """The usage, at the end of the stream.  Raises UpstreamError if the answer is not complete."""
        if not self.finished:
            raise UpstreamError("The upstream's answer ended before it was complete.", "cut")
        return [self.usage] if self.usage else []

    def of(self, choice: dict[str, JSON]) -> Iterator[Event]:
        said = choice.get("delta") or choice.get("message") or choice
        if thought := said.get("reasoning_content") or said.get("reasoning"):
            yield Thinking(text(thought))
        words, refusal = said.get("content") or choice.get("text"), said.get("refusal")
        if logprobs := self.logprobs(choice.get("logprobs")):
            # In a chunk with reasoning they are those of the reasoning; in a whole document one cannot tell.
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
        if self.called and reason in ("stop", "function_call"):  # some servers end a forced call like this
            reason = "tool_calls"
        yield Finish("content_filter" if refused and reason == "stop" else reason)

    def logprobs(self, told: JSON) -> tuple[Mapping[str, JSON], ...]:
        """Logprobs in the form of chats.  Completions usually have them as parallel lists, but not on all servers."""
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
    """A logprob.  null is minus infinity, which JSON cannot represent."""
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
    """A function call that is still arriving."""

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
    """Assembles function calls from their pieces, which may be interleaved.

    Each call is returned once, when it is complete, and in the order in which they began.
    """

    def __init__(self) -> None:
        self.open: dict[int, Begun] = {}
        self.last = 0

    def add(self, piece: Mapping[str, JSON], index: int | None) -> Iterator[ToolCalled]:
        """Add a piece.  If it begins a new call, gives the earlier ones that are complete.

        A new call has a new index, or a new id if the server sends no index or always the same.
        """
        id, function = text(piece.get("id") or ""), piece.get("function") or {}
        name, arguments = text(function.get("name") or ""), function.get("arguments") or ""
        words = orjson.dumps(arguments).decode() if isinstance(arguments, dict) else text(arguments)
        self.last = self.last if index is None else index
        one = self.open.get(self.last)
        if one is not None and id and one.id and id != one.id:
            yield from self.end()
            one = None
        if one is None:
            if not (id or name or words.strip()):  # an empty piece of a call that was already returned
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
        """The remaining calls.  cut: the answer reached its maximum length, so an incomplete call is dropped.

        Raises UpstreamError for any other incomplete call.
        """
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
    """The vectors of an /embeddings document, `wanted` rows of unit length in the order of the inputs, and their usage.

    dimensions: cuts the vectors, because some servers ignore the requested number.
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
