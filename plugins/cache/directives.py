"""What one request wants of the cache.  Source: RFC 9111, section 5.2.1, for `Cache-Control` in requests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from proxy.errors import BadCall, UpstreamError
from proxy.types import Call

CONTROL: Final = "cache-control"
TTL: Final = "x-gemmapy-cache-ttl"
FIELD: Final = "use_cache"
MAX_AGE: Final = re.compile(r"\s*max-age\s*=\s*\"?(\d{1,9})\"?\s*")


class NotKept(UpstreamError):
    """Only a kept answer was wanted, and there is none.  Source: RFC 9111, section 5.2.1.7, which makes it a 504."""

    def __init__(self) -> None:
        super().__init__("No answer to this is kept, and no other was wanted.", "timeout", code="not_cached")
        self.again = False


@dataclass(frozen=True, slots=True)
class Directives:
    """reads: whether a kept answer will do; keeps: whether the new one may be kept, and others may share it.

    oldest: seconds that a kept answer may have; only: no new answer is wanted; ttl: seconds that one is kept.
    """

    reads: bool = True
    keeps: bool = True
    oldest: float | None = None
    only: bool = False
    ttl: float | None = None


NONE: Final = Directives()


def directives_of(call: Call) -> Directives:
    """Raises BadCall for a wish that cannot be read."""
    if not call.headers and not call.extra:
        return NONE
    use = call.extra.get(FIELD)
    control = call.headers.get(CONTROL, "").lower()
    told = {one.strip() for one in control.split(",")}
    only = "only-if-cached" in told
    # Of what is stored already `no-store` says nothing (section 5.2.1.5), and nothing is made for who wants only that.
    keeps = use is not False and (only or "no-store" not in told)
    found = next((match for one in told if (match := MAX_AGE.fullmatch(one))), None)
    return Directives(
        reads=keeps and "no-cache" not in told,
        keeps=keeps,
        oldest=float(found[1]) if found else None,
        only=only,
        ttl=_ttl(call.headers.get(TTL)),
    )


def _ttl(given: str | None) -> float | None:
    if given is None:
        return None
    if not re.fullmatch(r"\d{1,9}(\.\d{1,3})?", given) or not float(given):
        raise BadCall(f"Invalid '{TTL}': expected a number of seconds above 0.", param=TTL, code="invalid_value")
    return float(given)
