"""Benchmarks of dialects, pools, workers and sizes."""

# ruff: noqa: T201  (a command line prints)

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median

import uvloop

from tests.bench import asks
from tests.bench.load import hammer, one_caller
from tests.bench.parts import BOTH, CALLS, Length, Part, Served, interleaved, ratio
from tests.bench.processes import Bench
from tests.bench.report import Found
from tests.bench.streams import idling
from tests.bench.upstream import HOSTS, IDLE

STREAMS = 2_000
MODELS = 1_000


def dialects(bench: Bench, length: Length) -> Iterator[Found]:
    with bench.proxy() as proxy:
        servers = {"OpenAI's": Served(proxy, asks.openai()), "Ollama's": Served(proxy, asks.native())}
        samples = interleaved(bench, servers, length)
    yield Found("native dialect / OpenAI's", ratio(samples, "Ollama's", "OpenAI's"), "", 1.0, least=True)


def dialect_streams(bench: Bench, length: Length) -> Iterator[Found]:
    with bench.proxy() as proxy:
        servers = {
            "OpenAI's": Served(proxy, asks.openai(stream=True)),
            "Ollama's": Served(proxy, asks.native(stream=True)),
        }
        samples = interleaved(bench, servers, length)
    yield Found("native streams / OpenAI's", ratio(samples, "Ollama's", "OpenAI's"), "", 1.0, least=True)


def pool(bench: Bench, length: Length) -> Iterator[Found]:
    with bench.proxy() as one, bench.proxy(hosts=len(HOSTS)) as several:
        servers = {"one host": Served(one, asks.openai()), "a pool of 8": Served(several, asks.openai())}
        samples = interleaved(bench, servers, length)
    yield Found("a pool of 8 hosts / one host", ratio(samples, "a pool of 8", "one host"), "", 0.95, least=True)


def workers(bench: Bench, length: Length) -> Iterator[Found]:
    """Answers per CPU second of the busiest process: what two workers achieve on separate cores.

    The load generator and the upstream need the same two cores, and would distort the elapsed time.
    """
    rates: dict[int, list[float]] = {1: [], 2: []}
    with bench.proxy(BOTH) as one, bench.proxy(BOTH, workers=2) as two:
        for turn in range(length.rounds + 1):
            for count, process in ((1, one), (2, two)):
                before = process.workers or {0: process.cpu}
                answers = hammer(process.port, asks.openai(), max(2, length.seconds), bench.folder)
                after = process.workers or {0: process.cpu}
                busiest = max(after[pid] - before[pid] for pid in before)
                rates[count] += [answers / busiest] if turn else []
    for count, found in rates.items():
        print(f"  {count} of them: {median(found):.0f} answers a second of the busiest", flush=True)
    gain = median(two / one for one, two in zip(rates[1], rates[2], strict=True))
    yield Found("two workers / one", gain, "", 1.7, least=True)


def idle(bench: Bench, length: Length) -> Iterator[Found]:
    with bench.proxy(BOTH) as proxy:
        before = proxy.memory
        held = uvloop.run(idling(proxy.port, asks.openai(stream=True, model=IDLE), STREAMS, lambda: proxy.memory))
    print(f"  {before:.1f} MB before, {(held - before) / STREAMS * 1024:.1f} kB a stream", flush=True)
    yield Found(f"{STREAMS:,} idle streams, memory in all", held, "MB", 150)


def lists(bench: Bench, length: Length) -> Iterator[Found]:
    with bench.ollama(MODELS) as many, bench.proxy() as short, bench.proxy(upstream=many) as long:
        waited: dict[str, list[float]] = {"3 models": [], f"{MODELS:,} models": []}
        for turn in range(length.rounds + 1):
            for name, process in zip(waited, (short, long), strict=True):
                taken = one_caller(process.port, asks.openai(), CALLS)
                waited[name] += taken if turn else []
    few, more = (median(taken) for taken in waited.values())
    print(f"  p50 {few * 1e6:.0f} µs with 3 models in the lists, {more * 1e6:.0f} µs with {MODELS:,}", flush=True)
    yield Found(f"one caller, p50 with {MODELS:,} models / 3", more / few, "", 1.05)


SURFACE: Mapping[str, Part] = {
    "dialects": dialects,
    "streams": dialect_streams,
    "pool": pool,
    "workers": workers,
    "idle": idle,
    "lists": lists,
}
