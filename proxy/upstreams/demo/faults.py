"""Faults, which are injected into later requests."""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from .refusals import BUSY, CANCELED

Kind = Literal[
    "error_line",
    "eof",
    "reset",
    "stall",
    "status",
    "nested",
    "garbage",
    "load_failure",
    "slow_load",
    "long_line",
]
GENERATING = ("/api/chat", "/api/generate", "/api/embed")
LOADING: frozenset[Kind] = frozenset({"load_failure", "slow_load"})
STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)
MESSAGES: dict[Kind, str] = {
    "load_failure": "llama-server process has terminated: exit status 1",
    "nested": '{"error":{"code":400,"message":"request (818 tokens) exceeds the available context size '
    '(256 tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":818,"n_ctx":256}}',
}
BY_STATUS = {499: CANCELED, 503: BUSY}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in later requests.  Requests that generate nothing are only hit by faults of loading."""

    kind: Kind
    after: int = 0
    """Lines sent before it happens; 0 = before the first, when errors still have a status."""
    status: int = 500
    """HTTP status of "status" and "error_line", if no line has been sent."""
    message: str = ""
    """Text of the error; "" = what Ollama would say."""
    seconds: float = 3600.0
    """How long a "stall" lasts, or a "slow_load" takes."""
    until: asyncio.Event | None = None
    """Ends a "stall" or a "slow_load" early; a "load_failure" waits for it."""
    path: str = ""
    """Prefix of the paths that it hits; "" = chat, generate and embed."""
    times: int = 1
    """Number of requests that it hits."""
    size: int = 4_000_000
    """Characters in a "long_line"."""

    @property
    def text(self) -> str:
        if self.message:
            return self.message
        usual = BY_STATUS.get(self.status, STOPPED) if self.kind == "status" else STOPPED
        return MESSAGES.get(self.kind, usual)

    async def wait_until_over(self) -> None:
        """Wait until a stall or a slow load is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.seconds):
                await (self.until or asyncio.Event()).wait()

    def hits(self, path: str, generates: bool) -> bool:
        if not generates and self.kind not in LOADING:
            return False
        return path.startswith(self.path or GENERATING)


def take_fault(faults: deque[Fault], path: str, generates: bool) -> Fault | None:
    """The first fault that hits this request; it is counted down, and removed after its last time."""
    for place, fault in enumerate(faults):
        if fault.hits(path, generates):
            if fault.times > 1:
                faults[place] = replace(fault, times=fault.times - 1)
            else:
                del faults[place]
            return fault
    return None
