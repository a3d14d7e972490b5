"""Loads models like Ollama: one load at a time, a bounded queue, idle timeouts, eviction."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from .faults import LOADING, Fault
from .models import Model
from .options import LoadOptions
from .refusals import BUSY, CANCELED, Refused

IDLE = 300.0
"""Seconds that an unused model stays loaded, if the request does not say."""
FOREVER = 292 * 365.25 * 86_400
"""Go's longest duration, which a negative keep_alive means."""


class Runner:
    """A loaded model."""

    def __init__(self, model: Model, wanted: LoadOptions, parallel: int) -> None:
        self.model = model
        self.wanted = wanted
        self.slots = asyncio.Semaphore(parallel)
        self.idle = asyncio.Event()
        self.idle.set()
        self.active = 0
        self.keep = IDLE
        self.expires = math.inf
        self.prompt = ""
        """The previous prompt, which is in its prompt cache."""


class Load:
    """A load under way, for which several requests may wait."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.error: Refused | None = None

    def end(self, error: Refused | None = None) -> None:
        if not self.over.is_set():
            self.error = error
            self.over.set()

    async def run(self, seconds: float, fault: Fault | None) -> None:
        """Wait as long as loading takes.  Raises Refused if a client that waits for it leaves."""
        if fault and (fault.kind == "slow_load" or (fault.kind == "load_failure" and fault.until)):
            await self._unless_over(fault.wait_until_over())
        if seconds > 0:
            await self._unless_over(asyncio.sleep(seconds))
        if self.error:
            raise self.error

    async def _unless_over(self, takes: Coroutine[Any, Any, None]) -> None:
        waits = [asyncio.ensure_future(one) for one in (takes, self.over.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()


@dataclass
class Scheduler:
    load_time: float = 0.0
    max_loaded: int = 3
    max_queue: int = 512
    parallel: int = 1
    clock: Callable[[], float] = field(kw_only=True)
    loads: int = 0
    reloads: int = 0
    evictions: int = 0
    load_aborts: int = 0

    def __post_init__(self) -> None:
        self.loaded: dict[str, Runner] = {}
        self._loads: dict[tuple[str, LoadOptions], Load] = {}
        self._load_lock = asyncio.Lock()
        self._pending = 0

    @asynccontextmanager
    async def using(
        self, model: Model, wanted: LoadOptions, keep: float | None, fault: Fault | None
    ) -> AsyncIterator[Runner]:
        """The model, loaded with these options, with one of its slots reserved."""
        runner = await self._ready(model, wanted, fault)
        runner.active += 1
        runner.idle.clear()
        runner.keep = IDLE if keep is None else keep
        try:
            async with runner.slots:
                yield runner
        finally:
            self._release(runner)

    def unload(self, model: Model) -> None:
        self.loaded.pop(model.name, None)

    def current(self) -> list[Runner]:
        """The loaded models, the one that stays longest first."""
        self._sweep()
        return sorted(self.loaded.values(), key=lambda runner: -self.expiry(runner))

    def expiry(self, runner: Runner) -> float:
        at = runner.expires if math.isfinite(runner.expires) else self.clock() + min(runner.keep, FOREVER)
        return min(at, self.clock() + FOREVER)

    def _release(self, runner: Runner) -> None:
        runner.active -= 1
        if runner.active:
            return
        runner.idle.set()
        runner.expires = self.clock() + runner.keep
        self._sweep()

    def _sweep(self) -> None:
        for name, runner in list(self.loaded.items()):
            if not runner.active and runner.expires <= self.clock():
                del self.loaded[name]

    def _loaded_as_wanted(self, model: Model, wanted: LoadOptions) -> Runner | None:
        self._sweep()
        runner = self.loaded.get(model.name)
        if runner is None or runner.wanted != wanted:
            return None
        self.loaded[model.name] = self.loaded.pop(model.name)  # Keeps the least recently used first.
        return runner

    async def _ready(self, model: Model, wanted: LoadOptions, fault: Fault | None) -> Runner:
        if fault and fault.kind in LOADING:
            self.unload(model)
        if runner := self._loaded_as_wanted(model, wanted):
            return runner
        if self._pending > self.max_queue:
            raise Refused(503, BUSY)
        self._pending += 1
        try:
            return await self._queued(model, wanted, fault)
        finally:
            self._pending -= 1

    async def _queued(self, model: Model, wanted: LoadOptions, fault: Fault | None) -> Runner:
        while not (runner := self._loaded_as_wanted(model, wanted)):
            load = self._loads.get((model.name, wanted))
            if load and not load.over.is_set():
                await self._join(load)
            else:
                await self._load(model, wanted, fault)
        return runner

    async def _join(self, load: Load) -> None:
        try:
            await load.over.wait()
        except asyncio.CancelledError:
            self._abort(load)
            raise
        if load.error:
            raise load.error

    async def _load(self, model: Model, wanted: LoadOptions, fault: Fault | None) -> None:
        load = self._loads[model.name, wanted] = Load()
        try:
            async with self._load_lock:
                await self._make_room(model)
                await load.run(self.load_time, fault)
                if fault and fault.kind == "load_failure":
                    raise Refused(500, fault.text)
                self.loaded[model.name] = Runner(model, wanted, self.parallel)
        except asyncio.CancelledError:
            self._abort(load)
            raise
        except Refused as error:
            load.end(error)
            raise
        finally:
            load.end()
            # If this one was aborted in the queue, another may have replaced it.
            if self._loads.get((model.name, wanted)) is load:
                del self._loads[model.name, wanted]

    def _abort(self, load: Load) -> None:
        """A client that leaves while a model loads aborts the load, for all who wait for it."""
        if not load.over.is_set():
            self.load_aborts += 1
            load.end(Refused(499, CANCELED))

    async def _make_room(self, model: Model) -> None:
        if runner := self.loaded.get(model.name):
            self.reloads += 1
            await _idle(runner)
            self.unload(model)
            return
        self.loads += 1
        while len(self.loaded) >= self.max_loaded:
            waiting = [item for item in self.loaded.values() if not item.active]
            victim = (waiting or list(self.loaded.values()))[0]
            await _idle(victim)
            if self.loaded.pop(victim.model.name, None):
                self.evictions += 1


async def _idle(runner: Runner) -> None:
    while runner.active:
        await runner.idle.wait()
