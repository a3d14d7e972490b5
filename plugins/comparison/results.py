"""A comparison as it is stored and returned: a question, and the answer of each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from proxy.announcements import KEPT, CallEnded
from proxy.errors import NotFound, ProxyError
from proxy.prices import money
from proxy.streams import Answer
from proxy.types import JSON, Call

PREFIX: Final = "cmp_"
TIE: Final = -1
NONE_GOOD: Final = -2
WORDS: Final = {TIE: "tie", NONE_GOOD: "none_good"}
"""Votes that name no winner."""
LETTERS: Final = "ABCDEFGH"
"""Names of the answers while their models are hidden."""
RATINGS: Final = {1: "up", -1: "down", 0: "none"}
LONGEST: Final = 2000
"""Characters of an error message that are stored."""


@dataclass(frozen=True, slots=True)
class Result:
    """See `tables.RESULTS`."""

    model: str
    named: str
    success: bool
    response: str = ""
    thinking: str = ""
    duration_ns: int = 0
    eval_ns: int = 0
    letters: int = 0
    first_ns: int | None = None
    eval_count: int | None = None
    prompt_eval_count: int | None = None
    cost: int | None = None
    cached: bool = False
    cut: bool = False
    currency: str = ""
    finish: str = ""
    request: str = ""
    error_code: str = ""
    error: str = ""
    cache_key: str = ""
    rating: int = 0
    sources: Sequence[Mapping[str, JSON]] = ()

    def per_second(self) -> float | None:
        """Completion tokens per second of the upstream's generation time; None if it did not report that."""
        if not self.eval_ns or self.eval_count is None:
            return None
        return round(self.eval_count * 1e9 / self.eval_ns, 2)

    def as_json(self, name: str, hidden: bool, whole: bool = True) -> dict[str, JSON]:
        """The result for the API.  name: shown for the model.  hidden: omit everything that could reveal the model.

        whole: whether the text is included.
        """
        error = {"code": self.error_code, "message": "The model failed." if hidden else self.error}
        return {
            "model": name,
            **(self.words() if whole else {}),
            **({"cut": True} if self.cut and whole else {}),
            "duration": round(self.duration_ns / 1e9, 3),
            "success": self.success,
            "eval_count": self.eval_count,
            "prompt_eval_count": self.prompt_eval_count,
            "tokens_per_second": self.per_second(),
            "first_token_ms": None if self.first_ns is None else round(self.first_ns / 1e6, 1),
            "cached": self.cached,
            "cost": None if hidden else money(self.cost),
            "currency": None if hidden else self.currency or None,
            "finish_reason": self.finish or None,
            "request_id": None if hidden else self.request,
            "rating": RATINGS[self.rating],
            **({} if self.success else {"error": error}),
        }

    def words(self) -> dict[str, JSON]:
        """The text of the answer, and the passages of documents that it is based on."""
        more = {"thinking": self.thinking, "sources": list(self.sources)}
        return {"response": self.response, **{name: told for name, told in more.items() if told}}


@dataclass(frozen=True, slots=True)
class Judgement:
    """See `tables.JUDGEMENTS`."""

    judge: str
    one: int
    other: int
    winner: int | None
    agreed: bool
    criteria: str = ""
    reasons: Sequence[str] = ()
    error: str = ""
    at: int = 0

    def as_json(self, names: Sequence[str]) -> dict[str, JSON]:
        return {
            "judge": self.judge,
            "models": [names[self.one], names[self.other]],
            "winner": None if self.winner is None else said(self.winner, names),
            "agreed": self.agreed,
            "reasons": list(self.reasons),
            "criteria": self.criteria or None,
            "error": self.error or None,
        }


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison.  number: of its row, 0 if it has none.  kept: whether it is stored.

    unjudged: the error of the requested judge.
    """

    id: str
    owner: str
    at: int
    prompt: str
    asked: Mapping[str, JSON]
    blind: bool
    results: Sequence[Result] = ()
    judgements: Sequence[Judgement] = ()
    vote: int | None = None
    number: int = 0
    kept: bool = True
    unjudged: ProxyError | None = None

    def but(self, **changes: Any) -> Compared:
        return replace(self, **changes)

    @property
    def hidden(self) -> bool:
        """Whether models are still hidden: until the vote.  Without storage there is no vote, so nothing is hidden."""
        return self.blind and self.vote is None and self.kept

    def names(self) -> list[str]:
        """The displayed names of the answers, by place."""
        return [LETTERS[place] if self.hidden else one.model for place, one in enumerate(self.results)]

    def as_json(self, whole: bool = True) -> dict[str, JSON]:
        names, hidden = self.names(), self.hidden
        results = [one.as_json(name, hidden, whole) for one, name in zip(self.results, names, strict=True)]
        head: dict[str, JSON] = {"comparison_id": self.id, "object": "comparison", "prompt": self.prompt}
        why = self.unjudged
        return {
            **head,
            "results": results,
            "blind": self.blind,
            "vote": None if self.vote is None else said(self.vote, names),
            "judgements": [one.as_json(names) for one in self.judgements],
            "created_at": self.at // 10**6,
            **({} if self.kept else {"kept": False}),
            **(
                {}
                if why is None
                else {"judge_error": {"code": why.code or why.kind, "message": clean(str(why))[:LONGEST]}}
            ),
        }


def said(winner: int, names: Sequence[str]) -> str:
    return WORDS.get(winner) or names[winner]


def unknown(id: str) -> NotFound:
    message = f"No comparison '{id[:200]}' of yours was found."
    return NotFound(message, param="id", code="comparison_not_found")


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """The outcome of one call.  named: the normalised name of its model."""

    call: Call
    named: str
    answer: Answer = field(default_factory=Answer)
    ended: CallEnded | None = None
    error: ProxyError | None = None

    def result(self) -> Result:
        choice, ended = self.answer.choice(0), self.ended or CallEnded("", 0, "", "", "", True, "")
        text, error, cost = clean(choice.text), self.error, ended.cost
        told = None if error is None else (error.code or error.kind, clean(str(error))[:LONGEST])
        return Result(
            self.call.model,
            self.named,
            error is None,
            text,
            clean(choice.thinking),
            ended.total_ns,
            ended.eval_ns,
            len(text),
            ended.first_ns,
            counted(ended, "completion_tokens"),
            counted(ended, "prompt_tokens"),
            None if cost is None else cost.amount,
            ended.cache in KEPT,
            currency="" if cost is None else cost.currency,
            finish=choice.finish if error is None else "",
            request=self.call.id,
            error_code="" if told is None else told[0],
            error="" if told is None else told[1],
            cache_key=ended.cache_key,
            sources=() if choice.sources is None else choice.sources.passages,
        )


def counted(ended: CallEnded, name: str) -> int | None:
    """Tokens as the upstream reported them; None if they are estimated."""
    found: int | None = None if name in ended.estimated else getattr(ended, name)
    return found


def clean(text: str) -> str:
    """The text without null characters and lone surrogates, which not every database accepts."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
