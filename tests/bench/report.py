"""What was found, beside what is promised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """One measure.  bound: what must be met; aim: what is hoped for; least: whether more is better."""

    measure: str
    value: float
    unit: str
    bound: float
    aim: float | None = None
    least: bool = False

    @property
    def met(self) -> bool:
        return self.meets(self.bound)

    def meets(self, limit: float) -> bool:
        return self.value >= limit if self.least else self.value <= limit

    @property
    def verdict(self) -> str:
        if not self.met:
            return "MISSED"
        return "ok" if self.aim is None or self.meets(self.aim) else "ok, aim missed"

    def row(self) -> tuple[str, str, str, str, str]:
        sign = ">=" if self.least else "<="
        aim = "" if self.aim is None else f"{sign} {self.aim:g}"
        return self.measure, f"{self.value:.3g} {self.unit}".strip(), f"{sign} {self.bound:g}", aim, self.verdict


def table(found: Iterable[Found]) -> str:
    rows = [("measure", "value", "bound", "aim", ""), *(one.row() for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
