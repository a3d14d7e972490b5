"""Converts a trainer's output, JSON lines, to events, checkpoints and progress."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

NUMBERS: Final[Mapping[str, str]] = {
    "loss": "train_loss",
    "train_loss": "train_loss",
    "valid_loss": "valid_loss",
    "eval_loss": "valid_loss",
    "accuracy": "train_mean_token_accuracy",
    "valid_accuracy": "valid_mean_token_accuracy",
    "learning_rate": "learning_rate",
    "epoch": "epoch",
}
"""The measurements that a line may have, and OpenAI's names for them."""
LEVELS: Final = ("info", "warn", "error")
SOME: Final = 200
"""Maximum events of each kind per write; of more, only every second one is kept."""
LETTERS: Final = 1000
MOST_STEPS: Final = 2**53


@dataclass(slots=True)
class Checkpoint:
    name: str
    step: int
    metrics: dict[str, float]


@dataclass(slots=True)
class Measures:
    """done, total: steps.  trained: tokens, if reported.  measured, said, checkpoints: not written yet."""

    done: int = 0
    total: int = 0
    trained: int = 0
    samples: int = 0
    measured: list[dict[str, Any]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    moved: bool = False

    def hear(self, line: bytes) -> None:
        """Lines that are not JSON objects are ignored: libraries print whatever they like."""
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError:
            return
        if not isinstance(found, dict):
            return
        self.done = whole(found.get("step"), self.done)
        self.total = whole(found.get("steps"), self.total)
        self.trained = whole(found.get("tokens"), self.trained)
        self.moved = True
        metrics = {ours: float(found[name]) for name, ours in NUMBERS.items() if is_number(found.get(name))}
        if metrics.keys() - {"epoch"}:
            self.measure(metrics)
        if isinstance(message := found.get("message"), str) and message:
            level = found.get("level") if found.get("level") in LEVELS else "info"
            self.said.append({"level": level, "message": clean(message)})
            thin(self.said)
        if isinstance(name := found.get("checkpoint"), str) and name:
            self.checkpoints.append(Checkpoint(clean(name), self.done, metrics))
            thin(self.checkpoints)

    def measure(self, metrics: dict[str, float]) -> None:
        of = f"/{self.total}" if self.total else ""
        losses = {"training loss": metrics.get("train_loss"), "validation loss": metrics.get("valid_loss")}
        told = ", ".join(f"{name}={loss:.4g}" for name, loss in losses.items() if loss is not None)
        data = {"step": self.done, **({"total_steps": self.total} if self.total else {}), **metrics}
        message = f"Step {self.done}{of}{told and f': {told}'}"
        row = {"level": "info", "message": message, "sample": self.samples, "data": orjson.dumps(data).decode()}
        self.measured.append(row)
        self.samples += 1
        thin(self.measured)

    def taken(self) -> tuple[list[dict[str, Any]], list[Checkpoint]]:
        """Take what has to be written now."""
        blank = {"sample": -1, "data": ""}
        rows, marks = [*self.measured, *({**blank, **one} for one in self.said)], self.checkpoints
        self.measured, self.said, self.checkpoints, self.moved = [], [], [], False
        return rows, marks


def thin(some: list[Any]) -> None:
    if len(some) > SOME:
        del some[:-1:2]


def whole(given: Any, otherwise: int) -> int:
    return given if type(given) is int and 0 <= given < MOST_STEPS else otherwise


def is_number(given: Any) -> bool:
    return type(given) in (int, float) and abs(given) < MOST_STEPS and math.isfinite(given)


def clean(text: str, most: int = LETTERS) -> str:
    """Text that every database accepts."""
    return text[:most].replace("\0", "").encode("utf-8", "replace").decode()
