"""The cost of answers that were generated but not delivered, as part of what their call took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec.structs import replace

from proxy.announcements import Rejected
from proxy.estimates import LETTERS
from proxy.observer import HeldBackAnswer
from proxy.types import Event, Text, Thinking, ToolCalled, Usage

NOTHING: Final = Usage(None, None)
TIMES: Final = ("load_ns", "prompt_ns", "eval_ns")
Counts = tuple[int | None, int | None, int | None, int | None]
"""Prompt, completion, cached and thinking tokens; None if unknown."""


def grown(made: HeldBackAnswer, event: Event) -> None:
    """Count one more event of a held-back answer."""
    if isinstance(event, Usage):
        made.usage = event
    elif isinstance(event, Text):
        made.pieces += 1
        made.said += len(event.text)
    elif isinstance(event, Thinking):
        made.pieces += 1
        made.thought += len(event.text)
    elif isinstance(event, ToolCalled):
        letters = len(event.name) + len(event.arguments)
        made.pieces += max(1, round(letters / LETTERS))
        made.said += letters


def in_all(
    counts: Counts, estimated: Iterable[str], making: Iterable[HeldBackAnswer], about: int, stream: bool
) -> tuple[Counts, tuple[str, ...], tuple[Rejected, ...]]:
    """A call's total counts, the names of those that are estimated, and its answers that were not delivered.

    counts, estimated: of the delivered answer.  about: estimated prompt tokens, used if the upstream reported none.
    stream: whether the upstream streamed, so that an event is about one token.
    """
    guessed = list(estimated)
    lost = tuple(part(one, about, stream, guessed) for one in making if one.lost)
    return with_them(counts, lost), tuple(dict.fromkeys(guessed)), lost


def part(one: HeldBackAnswer, about: int, stream: bool, guessed: list[str]) -> Rejected:
    """guessed: the names of counts that had to be estimated are appended to it."""
    usage = one.usage or NOTHING
    prompt, completion, thinking = usage.prompt_tokens, usage.completion_tokens, usage.thinking_tokens
    if prompt is None:
        prompt = about
        guessed.append("prompt_tokens")
    if completion is None:
        completion = one.pieces if stream else max(1, round((one.said + one.thought) / LETTERS))
        guessed.append("completion_tokens")
    if thinking is None and one.thought:
        thinking = round(completion * one.thought / (one.thought + one.said))
        guessed.append("thinking_tokens")
    times = usage.load_ns, usage.prompt_ns, usage.eval_ns
    return Rejected(one.model, one.upstream, prompt, completion, usage.cached_tokens or 0, thinking or 0, *times)


def with_them(counts: Counts, rejected: Iterable[Rejected]) -> Counts:
    """The total counts of the call."""
    prompt, completion, cached, thinking = counts
    for one in rejected:
        prompt, completion = (prompt or 0) + one.prompt_tokens, (completion or 0) + one.completion_tokens
        cached = cached if cached is None and not one.cached_tokens else (cached or 0) + one.cached_tokens
        thinking = (thinking or 0) + one.thinking_tokens
    return prompt, completion, cached, thinking


def with_times(usage: Usage, rejected: Sequence[Rejected]) -> Usage:
    """`usage` with the times of these answers added."""
    times = {name: getattr(usage, name) + sum(getattr(one, name) for one in rejected) for name in TIMES}
    return replace(usage, **times)
