"""Cache directives of a request.  Source: RFC 9111, section 5.2.1, for `Cache-Control` in requests."""

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
    """`only-if-cached` was sent and nothing is cached: a 504.  Source: RFC 9111, section 5.2.1.7."""

    def __init__(self) -> None:
        super().__init__("No answer to this is kept, and no other was wanted.", "timeout", code="not_cached")
        self.again = False


@dataclass(frozen=True, slots=True)
class Directives:
    """reads: whether a cached answer is accepted; keeps: whether a new one may be cached and shared with others.

    oldest: maximum age of a cached answer in seconds; only: nothing is generated; ttl: seconds to cache an answer.
    """

    reads: bool = True
    keeps: bool = True
    oldest: float | None = None
    only: bool = False
    ttl: float | None = None


NONE: Final = Directives()


def directives_of(call: Call) -> Directives:
    """The directives in a call's headers and body.  Raises BadCall for an invalid time to live."""
    if not call.headers and not call.extra:
        return NONE
    use = call.extra.get(FIELD)
    control = call.headers.get(CONTROL, "").lower()
    told = {one.strip() for one in control.split(",")}
    only = "only-if-cached" in told
    # `no-store` does not concern what is stored already (section 5.2.1.5), and `only-if-cached` generates nothing new.
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
