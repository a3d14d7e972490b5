"""Splits an answer into the lines of a stream, in either of Ollama's modes."""

import hashlib
import string
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any
from zlib import crc32

import orjson

from .answers import Said
from .models import Mode
from .prompts import tokens_of

Json = dict[str, Any]
SIZES = (1, 1, 2, 1, 3)
"""Numbers of tokens per line, repeated cyclically: as with Ollama, a line is not a token."""
HELD_BACK = 7
"""With logprobs, every seventh line has nothing else, and its text comes with the next line."""
REPEATS = 30
"""Consecutive equal pieces after which Ollama aborts an answer that it parses itself."""
LETTERS = string.ascii_lowercase + string.digits
ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Line:
    text: str = ""
    thinking: str = ""
    calls: tuple[Json, ...] = ()
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """How to split an answer."""

    mode: Mode = "native"
    limit: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    ids: bool = True
    patient: bool = True
    """Whether an answer may repeat itself without limit, as in a native chat."""
    seed: str = ""
    """From which the ids of tool calls are derived."""


@dataclass(frozen=True, slots=True)
class Script:
    lines: list[Line]
    last: Line
    """The contents of the final line."""
    reason: str
    tokens: int
    text: str = ""
    broken: bool = False
    """Whether it repeated itself so often that Ollama aborts it, without a final line."""


def script_of(said: Said, rules: Rules) -> Script:
    said = _stopped(said, rules.stop)
    spoken, tokens = _limited([*_thinking(said), *_text(said)], rules.limit)
    calls, size = _fitting(_calls(said, rules), None if rules.limit is None else rules.limit - tokens)
    over = rules.limit is not None and tokens + size >= rules.limit
    lines = list(_held(spoken)) if rules.logprobs and not said.pieces else spoken
    lines, last = _placed(lines, calls, rules.mode, bool(said.pieces))
    text = "".join(line.text for line in spoken)
    script = Script(lines, last, "length" if over else said.done_reason, tokens + size, text)
    return script if rules.patient else _given_up(script)


def _given_up(script: Script) -> Script:
    """The script, aborted where a piece was repeated too often."""
    row = 0
    for place, line in enumerate(script.lines):
        row = row + 1 if place and line.text and line.text == script.lines[place - 1].text else 0
        if row >= REPEATS:
            return replace(script, lines=script.lines[:place], broken=True)
    return script


def _stopped(said: Said, stops: tuple[str, ...]) -> Said:
    """The answer up to the first stop string, in its thinking or its text."""
    thinking, text = _before(said.thinking, stops), _before(said.whole, stops)
    if thinking != said.thinking:
        return replace(said, thinking=thinking, text="", pieces=(), tool_calls=())
    if text != said.whole:
        return replace(said, text=text, pieces=(), tool_calls=())
    return said


def _before(text: str, stops: tuple[str, ...]) -> str:
    found = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(found)] if found else text


def _thinking(said: Said) -> Iterator[Line]:
    for tokens in _grouped(said.thinking):
        yield Line(thinking="".join(tokens), tokens=tokens)


def _text(said: Said) -> Iterator[Line]:
    pieces = [tuple(tokens_of(piece)) for piece in said.pieces] or _grouped(said.text)
    for tokens in pieces:
        yield Line(text="".join(tokens), tokens=tokens)


def _grouped(text: str) -> Iterator[tuple[str, ...]]:
    tokens, place = tokens_of(text), 0
    for size in cycle(SIZES):
        if place >= len(tokens):
            return
        yield tuple(tokens[place : place + size])
        place += size


def _limited(lines: list[Line], limit: int | None) -> tuple[list[Line], int]:
    """As many lines as the limit permits, and their number of tokens."""
    kept, count = [], 0
    for line in lines:
        room = len(line.tokens) if limit is None else min(len(line.tokens), limit - count)
        if room < len(line.tokens):
            cut = line.tokens[:room]
            text = "".join(cut)
            line = Line(text=text, tokens=cut) if line.text else Line(thinking=text, tokens=cut)
        if line.tokens or limit is None:
            kept.append(line)
        count += room
    return kept, count


def _fitting(calls: list[Json], room: int | None) -> tuple[list[Json], int]:
    """The calls that are complete before the limit, and the tokens that were generated for calls."""
    kept, count = list[Json](), 0
    for call in calls:
        size = len(tokens_of(orjson.dumps(call["function"]).decode()))
        if room is not None and count + size > room:
            return kept, room  # a call that was cut short cannot be parsed, and is dropped
        kept.append(call)
        count += size
    return kept, count


def _held(lines: list[Line]) -> Iterator[Line]:
    held = ""
    for place, line in enumerate(lines, start=1):
        if place % HELD_BACK == 0 and place < len(lines) and line.text:
            held += line.text
            yield Line(tokens=line.tokens)
        else:
            yield replace(line, text=held + line.text)
            held = ""


def _placed(lines: list[Line], calls: list[Json], mode: Mode, cut: bool) -> tuple[list[Line], Line]:
    """Native: all calls on the final line. Rendered: each call on a line before it, and it may have text."""
    if mode == "native":
        return lines, Line(calls=tuple(calls))
    if not calls and not cut and len(lines) > 1 and lines[-1].text:
        return lines[:-1], lines[-1]
    return lines + [Line(calls=(call,)) for call in calls], Line()


def _calls(said: Said, rules: Rules) -> list[Json]:
    calls = []
    for place, (name, arguments) in enumerate(said.tool_calls):
        index = place if rules.mode == "native" else 0
        call: Json = {"function": {"index": index, "name": name, "arguments": arguments}}
        calls.append({"id": _id(rules, place, name)} | call if rules.ids else call)
    return calls


def _id(rules: Rules, place: int, name: str) -> str:
    digest = hashlib.sha256(f"{rules.seed}\0{place}\0{name}".encode()).digest()
    if rules.mode == "native":
        return "".join(ALPHANUMERIC[byte % len(ALPHANUMERIC)] for byte in digest)
    return "call_" + "".join(LETTERS[byte % len(LETTERS)] for byte in digest[:8])


def logprobs_of(tokens: tuple[str, ...], top: int) -> list[Json]:
    return [_logprob(token, top) for token in tokens]


def _logprob(token: str, top: int) -> Json:
    # Above -0.61, so that no alternative is more likely than the token itself.
    likely = _entry(token, -(crc32(token.encode()) % 600) / 1000 - 0.001)
    if not top:
        return likely
    others = [_entry(f"{token}{number}", -1.0 - number) for number in range(1, top)]
    return {**likely, "top_logprobs": [likely, *others]}


def _entry(token: str, logprob: float) -> Json:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
