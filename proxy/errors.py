"""What can go wrong, in the words the client will read."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

Cause: TypeAlias = Literal["connect", "timeout", "overloaded", "load", "memory", "server", "cut", "invalid_answer"]


class ProxyError(Exception):
    """An expected failure; the edge turns it into the dialect's error JSON with this status."""

    status = 500
    kind = "server_error"

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, wait: float | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.wait = wait
        """Seconds after which another try makes sense; becomes `Retry-After`."""
        self.again: bool | None = None
        """Whether the client shall try again; becomes `x-should-retry`.  None leaves it to the client."""
        self.facts: dict[str, str] = {}
        """What plugins tell of a call that failed, as they do of one that did not: `x-gemmapy-…` headers."""

    def renamed(self, param: str | None) -> None:
        """The field that is wrong has this name in the client's own request."""
        if self.param and param and param != self.param:
            self.args = (str(self).replace(f"'{self.param}'", f"'{param}'"),)
        self.param = param

    @property
    def why(self) -> str:
        """What went wrong, for those who run the server: its clients may be told less."""
        return str(self)

    def copied(self) -> Self:
        """The same failure for another call: what is told of it for one must not be told of it for all."""
        made = type(self).__new__(type(self), *self.args)
        made.__dict__.update(self.__dict__)
        made.facts = dict(self.facts)
        return made


class BadCall(ProxyError):
    status, kind = 400, "invalid_request_error"


class TooLarge(BadCall):
    status = 413


class TooSlow(BadCall):
    status = 408


class WrongType(BadCall):
    """The body's content type is not one that is read here."""

    status = 415


class HeadTooLarge(BadCall):
    """A header, or the URL, is longer than is read here."""

    status = 431


class Unauthenticated(ProxyError):
    status, kind = 401, "authentication_error"


class Denied(ProxyError):
    status, kind = 403, "permission_error"


class NotFound(ProxyError):
    status, kind = 404, "invalid_request_error"


class WrongMethod(ProxyError):
    status, kind = 405, "invalid_request_error"

    def __init__(self, message: str, allowed: frozenset[str]) -> None:
        super().__init__(message)
        self.allowed = allowed


class TooMany(ProxyError):
    status, kind = 429, "rate_limit_error"


class Busy(ProxyError):
    """This server cannot take the call now."""

    status = 503


class UpstreamError(ProxyError):
    """The upstream failed.  Raised by `call_next` before the first event, so another try is safe."""

    status = 502

    def __init__(self, message: str, cause: Cause, *, code: str | None = None, wait: float | None = None) -> None:
        super().__init__(message, code=code or f"upstream_{cause}", wait=wait)
        self.cause = cause
        if cause == "timeout":
            self.status = 504
        elif cause == "overloaded":
            self.status = 503


class TooOld(ProxyError):
    """The upstream cannot do what the call needs; no other try can either."""

    status = 502

    def __init__(self, message: str) -> None:
        super().__init__(message, code="upstream_too_old")
        self.again = False


class Looped(ProxyError):
    """The call has been here before: an upstream leads back to this server."""

    status = 508

    def __init__(self, message: str) -> None:
        super().__init__(message, code="loop_detected")
        self.again = False


class ReaderTooSlow(ProxyError):
    """The client took its answer so slowly that the upstream would have been blocked."""


class ConfigError(Exception):
    """Every problem found in the configuration, each with file, line and path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
