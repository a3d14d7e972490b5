"""The results, compared with the promised bounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median


@dataclass(frozen=True, slots=True)
class Found:
    """One result.  bound: must be met; aim: should be met; least: whether these are minimums instead of maximums."""

    measure: str
    value: float
    unit: str
    bound: float
    aim: float | None = None
    least: bool = False
    values: tuple[float, ...] = ()
    """The values of all starts, if there were several."""

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

    def row(self) -> tuple[str, str, str, str, str, str]:
        sign = ">=" if self.least else "<="
        aim = "" if self.aim is None else f"{sign} {self.aim:g}"
        value = f"{self.value:.3g} {self.unit}".strip()
        spread = f"{min(self.values):.3g} to {max(self.values):.3g}" if len(self.values) > 1 else ""
        return self.measure, value, spread, f"{sign} {self.bound:g}", aim, self.verdict


def averaged(found: Iterable[Found]) -> list[Found]:
    """Each measure once, with the median of its values and all of them."""
    values: dict[str, list[Found]] = {}
    for one in found:
        values.setdefault(one.measure, []).append(one)
    return [
        replace(several[0], value=median(one.value for one in several), values=tuple(one.value for one in several))
        for several in values.values()
    ]


def table(found: Iterable[Found]) -> str:
    rows = [("measure", "value", "starts", "bound", "aim", ""), *(one.row() for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
