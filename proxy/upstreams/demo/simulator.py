"""The simulated Ollama server: its state, its counters, and its web application."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal

from aiohttp import web

from .answers import Said
from .calls import GenerationCounter, Seen, counting
from .faults import Fault
from .generation_request import GenerationRequest
from .model_store import ModelStore
from .models import CATALOGUE, Model
from .prompts import Prompt
from .routes import application
from .scheduler import Scheduler

Say = Callable[[dict[str, Any]], Said | None]


class Simulator:
    """A server that answers like Ollama without a model, and fails on demand.

    delay: seconds between lines. load_time: seconds that a cold model takes to load.
    parallel: requests that one model answers concurrently (Ollama's own default is 1).
    split: bytes after which a line continues in another packet; 0 = never.
    profile: "old" is a server without capabilities in tags, ids of tool calls, and logprobs.
    """

    def __init__(  # noqa: PLR0913 -- every one of them is a knob, given by name
        self,
        *,
        models: Iterable[Model] = CATALOGUE,
        delay: float = 0.0,
        load_time: float = 0.0,
        max_loaded: int = 3,
        max_queue: int = 512,
        parallel: int = 4,
        version: str = "0.33.0",
        profile: Literal["new", "old"] = "new",
        faults: Iterable[Fault] = (),
        say: Say | None = None,
        split: int = 0,
        strict_hosts: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.models = tuple(models)
        self.store = ModelStore(self.models)
        self.scheduler = Scheduler(load_time, max_loaded, max_queue, parallel, clock=clock)
        self.delay = delay
        self.version = version
        self.profile = profile
        self.faults = deque(faults)
        self.say = say
        self.split = split
        self.strict_hosts = strict_hosts
        self.seen: deque[Seen] = deque(maxlen=1_000)
        self.calls: Counter[str] = Counter()
        self.started = self.finished = self.abandoned = self.running = 0
        self._news = asyncio.Event()

    @property
    def loads(self) -> int:
        """Loads of cold models."""
        return self.scheduler.loads

    @property
    def reloads(self) -> int:
        """Loads because the load-time options of a request differed from those of the loaded model."""
        return self.scheduler.reloads

    @property
    def evictions(self) -> int:
        return self.scheduler.evictions

    @property
    def load_aborts(self) -> int:
        """Loads aborted because a client that waited for them left."""
        return self.scheduler.load_aborts

    def app(self) -> web.Application:
        return application(self)

    def said(self, ask: GenerationRequest, prompt: Prompt) -> Said | None:
        """The answer that a test prescribes for this request, if any."""
        return self.say(ask.body) if self.say else None

    def counting(self, *, generates: bool) -> AbstractContextManager[GenerationCounter]:
        return counting(self, generates)

    def note_leaving(self) -> None:
        self.abandoned += 1
        self.note()

    def note(self) -> None:
        """Wake those who wait in `until`, since a counter has changed."""
        self._news.set()

    async def until_abandoned(self, n: int = 1, within: float = 30.0) -> None:
        """Returns when n clients have left before their answers were complete.

        Raises TimeoutError after `within` seconds.
        """
        await self.until(lambda: self.abandoned >= n, within)

    async def until(self, holds: Callable[[], bool], within: float = 30.0) -> None:
        """Returns when the condition on this simulator's counters holds.

        Raises TimeoutError after `within` seconds.
        """
        async with asyncio.timeout(within):
            while not holds():
                self._news.clear()
                await self._news.wait()
