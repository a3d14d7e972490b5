"""What callers are told about their limits: headers, and the message when a limit is reached."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Final

from plugins.limits.calendar import Calendar
from plugins.limits.plan import Counted, Plan
from plugins.limits.rules import BILLION
from proxy.errors import TooMany
from proxy.stores.counters import Claim, Verdict

MINUTE: Final = "1m1s"
"""Reset of a window in which something was granted just now."""
SOON: Final = 1.0
"""Seconds after which a call that exceeded the limit of concurrent calls may be retried."""


def rates(plan: Plan, claims: Sequence[Claim], verdict: Verdict) -> dict[str, str]:
    """OpenAI's rate limit headers; if several limits are of one kind, those of the limit with least left."""
    told: dict[str, str] = {}
    for index, (limit, remaining, reset) in plan.rates:
        most = claims[index].most
        left = most - verdict.used[index] if most > verdict.used[index] else 0
        if limit not in told or left < int(told[remaining]):
            told[limit] = str(most)
            told[remaining] = str(left)
            told[reset] = duration(round(verdict.whole[index] * 1000)) if verdict.whole else MINUTE
    return told


@lru_cache(4096)
def duration(milliseconds: int) -> str:
    """In OpenAI's format: `1m30s`, `6s`, `120ms`; above a second rounded up to whole seconds."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    seconds = -(-milliseconds // 1000)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if seconds >= 60 else "") + f"{seconds % 60}s"


def refused(one: Counted, claim: Claim, verdict: Verdict, calendar: Calendar) -> TooMany:
    """The error, which names the limit that was reached."""
    quantity = one.quantity
    if quantity.period:
        return spent(one, verdict, calendar)
    if not quantity.window:
        message = f"{claim.most} calls {one.whom} are under way, which is the limit of calls at once."
        return TooMany(message, code=quantity.code, wait=SOON)
    message = f"The limit of {claim.most} {quantity.words} {one.whom} is reached"
    if quantity.unit == "tokens":
        message += f": {verdict.used[verdict.full]} are counted, and this call needs about {claim.amount}"
    if verdict.wait is None:
        error = TooMany(f"{message}, which is more than there ever are.", code=quantity.code)
        error.again = False
        return error
    message += f".  Try again in {duration(round(verdict.wait * 1000))}."
    return TooMany(message, code=quantity.code, wait=verdict.wait)


def spent(one: Counted, verdict: Verdict, calendar: Calendar) -> TooMany:
    """Clients are told not to retry, unless the budget is only reserved by calls in progress."""
    quantity, span = one.quantity, calendar.span(one.quantity.period)
    amount = money(one.most) if quantity.unit == "money" else str(one.most)
    budget = f"The budget of {amount} {quantity.words} {one.whom}"
    if verdict.wait is not None:
        message = f"{budget} is not enough for this call together with those under way; try again when they have ended."
        return TooMany(message, code="too_many_at_once", wait=SOON)
    left = one.most - verdict.used[verdict.full]
    why = "is used up" if left <= 0 else "does not suffice for this call"
    begins = datetime.fromtimestamp(span.ends, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    message = f"{budget} {why}.  A new one begins at {begins}."
    error = TooMany(message, code=quantity.code, wait=span.ends - calendar.time())
    error.again = False
    return error


def money(billionths: int) -> str:
    """A decimal number: 2,500,000,000 gives `2.5`."""
    return f"{(Decimal(billionths) / BILLION).normalize():f}"
