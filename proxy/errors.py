"""The kinds of failure, with their HTTP status; clients see the messages."""

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
        """Whether the client should try again; becomes `x-should-retry`.  None leaves it to the client."""
        self.facts: dict[str, str] = {}
        """What plugins report about the failed call, like `Reply.facts`: `x-gemmapy-…` headers."""

    def renamed(self, param: str | None) -> None:
        """Use the wrong field's name in the client's own request, also in the message."""
        if self.param and param and param != self.param:
            self.args = (str(self).replace(f"'{self.param}'", f"'{param}'"),)
        self.param = param

    @property
    def why(self) -> str:
        """The message for the server's operator; clients may be told less."""
        return str(self)

    def copied(self) -> Self:
        """The same failure for another call, so that facts added for one call do not appear in the others."""
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
    """The body's content type is not supported."""

    status = 415


class HeadTooLarge(BadCall):
    """A header, or the URL, is too long."""

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
    """The upstream's version does not support what the call needs, so another try is useless."""

    status = 502

    def __init__(self, message: str) -> None:
        super().__init__(message, code="upstream_too_old")
        self.again = False


class Looped(ProxyError):
    """The call has passed this server before: an upstream leads back to it."""

    status = 508

    def __init__(self, message: str) -> None:
        super().__init__(message, code="loop_detected")
        self.again = False


class ReaderTooSlow(ProxyError):
    """The client read its answer so slowly that the upstream would have been blocked."""


class ConfigError(Exception):
    """Every problem found in the configuration, each with file, line and path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def was_asked(error: BaseException) -> bool:
    """Whether a call that failed before its first event had been sent to an upstream."""
    return isinstance(error, UpstreamError) or (isinstance(error, ProxyError) and bool(error.facts.get("upstream")))
