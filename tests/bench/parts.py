"""The benchmarks.  Each part starts its own servers, prints figures as it goes, and yields its results."""

# ruff: noqa: T201  (a command line prints)

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from tests.bench import asks
from tests.bench.asks import Ask
from tests.bench.load import hammer, one_caller
from tests.bench.processes import Bench, Process, Spent
from tests.bench.report import Found
from tests.bench.streams import read_streams
from tests.bench.upstream import PACE, PACED, SECONDS, SHORT, TOKENS

BOTH = "timeouts, retry"
"""The chain of the packaged configuration."""
STREAMS = 500
STARTS = 5
TRIES = 4
IDLE = 0.05
CALLS = 400
"""Calls of a single caller per round."""


@dataclass(frozen=True, slots=True)
class Length:
    """How long to measure: number of rounds, and seconds per server and round."""

    rounds: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A server's figures under full load."""

    answers: int
    spent: Spent

    @property
    def rate(self) -> float:
        """Answers per second of the server's core.

        Relative to the server's CPU time, which equals the elapsed time unless other processes run on its core.
        """
        return self.answers / self.spent.cpu

    @property
    def cost(self) -> float:
        """µs of CPU per answer."""
        return self.spent.cpu / self.answers * 1e6


@dataclass(frozen=True, slots=True)
class Served:
    """A server under test, and the request to send."""

    process: Process
    ask: Ask


def saturated(bench: Bench, served: Served, seconds: int) -> Sample:
    """Raises RuntimeError if the load cannot keep the server's core over 95 % busy."""
    for _ in range(TRIES):
        with served.process.watched() as spent:
            answers = hammer(served.process.port, served.ask, seconds, bench.folder)
        if spent[0].idle < IDLE:
            return Sample(answers, spent[0])
    raise RuntimeError(f"the measured core was idle for {spent[0].idle:.0%} of the time: the load is the bottleneck")


def interleaved(bench: Bench, servers: Mapping[str, Served], length: Length) -> dict[str, list[Sample]]:
    """The samples of all servers, measured in turns and in alternating order; prints their medians."""
    for served in servers.values():
        hammer(served.process.port, served.ask, 1, bench.folder)
    samples: dict[str, list[Sample]] = {name: [] for name in servers}
    for turn in range(length.rounds):
        for name in list(servers)[:: -1 if turn % 2 else 1]:
            samples[name].append(saturated(bench, servers[name], length.seconds))
    for name, taken in samples.items():
        rate, cost = median(one.answers / one.spent.seconds for one in taken), median(one.cost for one in taken)
        others = median(one.spent.others for one in taken)
        print(f"  {name:<30} {rate:7.0f} answers/s  {cost:7.1f} µs of CPU each{disturbed(others)}", flush=True)
    return samples


def disturbed(others: float) -> str:
    """A remark if other processes used the measured core."""
    return f"  (others took {others:.0%} of the core)" if others > IDLE else ""


def ratio(samples: Mapping[str, list[Sample]], one: str, other: str) -> float:
    """The median over rounds of the ratio of two servers' rates."""
    return median(a.rate / b.rate for a, b in zip(samples[one], samples[other], strict=True))


def whole(bench: Bench, length: Length) -> Iterator[Found]:
    with ExitStack() as stack:
        empty, quiet = stack.enter_context(bench.proxy()), stack.enter_context(bench.proxy(level="warning"))
        servers = {
            "forwarder": Served(stack.enter_context(bench.forwarder()), asks.native()),
            "proxy": Served(empty, asks.openai()),
            "proxy, log: {level: warning}": Served(quiet, asks.openai()),
        }
        samples = interleaved(bench, servers, length)
    print(
        f"  without request lines: {ratio(samples, 'proxy, log: {level: warning}', 'forwarder'):.3f} of the forwarder"
    )
    yield Found("whole answers, proxy / forwarder", ratio(samples, "proxy", "forwarder"), "", 0.60, 0.75, least=True)


def chain(bench: Bench, length: Length) -> Iterator[Found]:
    with bench.proxy() as empty, bench.proxy(BOTH) as full:
        servers = {"empty chain": Served(empty, asks.openai()), BOTH: Served(full, asks.openai())}
        samples = interleaved(bench, servers, length)
    yield Found("whole answers, timeouts and retry / empty", ratio(samples, BOTH, "empty chain"), "", 0.95, least=True)


def latency(bench: Bench, length: Length) -> Iterator[Found]:
    with bench.forwarder() as forwarder, bench.proxy() as proxy:
        servers = {"forwarder": Served(forwarder, asks.native()), "proxy": Served(proxy, asks.openai())}
        waited: dict[str, list[float]] = {name: [] for name in servers}
        for turn in range(length.rounds + 1):
            for name, served in servers.items():
                taken = one_caller(served.process.port, served.ask, CALLS)
                waited[name] += taken if turn else []  # the first round is the warm-up
    for name, taken in waited.items():
        print(f"  {name:<30} p50 {median(taken) * 1e6:.0f} µs, p99 {percentile(taken, 0.99) * 1e6:.0f} µs", flush=True)
    yield Found(
        "one caller, p50 proxy / forwarder", median(waited["proxy"]) / median(waited["forwarder"]), "", 1.6, 1.3
    )


def tokens(bench: Bench, length: Length) -> Iterator[Found]:
    with bench.forwarder() as forwarder, bench.proxy() as empty, bench.proxy(BOTH) as full:
        servers = {
            "forwarder": Served(forwarder, asks.native(stream=True)),
            "proxy": Served(empty, asks.openai(stream=True)),
            BOTH: Served(full, asks.openai(stream=True)),
        }
        samples = interleaved(bench, servers, length)
    for name, measure in (("proxy", "CPU a token, empty chain"), (BOTH, "CPU a token, timeouts and retry")):
        yield Found(measure, median(one.cost for one in samples[name]) / TOKENS, "µs", 13, 8)


def paced(bench: Bench, length: Length) -> Iterator[Found]:
    ask = asks.openai(stream=True, model=PACED)
    direct = read_streams(bench.upstream, asks.native(stream=True, model=PACED), STREAMS).delays
    with bench.proxy(BOTH) as proxy, proxy.watched() as spent:
        heard = read_streams(proxy.port, ask, STREAMS)
    expected = STREAMS * PACE * SECONDS
    if heard.ended != STREAMS or len(heard.delays) < 0.99 * expected:
        raise RuntimeError(f"{heard.ended} of {STREAMS} streams ended, {len(heard.delays)} of {expected} tokens came")
    for name, delays in (("without the proxy", direct), ("through the proxy", heard.delays)):
        p50, p99 = median(delays) * 1000, percentile(delays, 0.99) * 1000
        print(f"  {name:<30} p50 {p50:.1f} ms, p99 {p99:.1f} ms", flush=True)
    cost, busy = spent[0].cpu / expected * 1e6, spent[0].cpu / spent[0].seconds
    print(f"  {cost:.1f} µs of CPU a token, {busy:.0%} of the core{disturbed(spent[0].others)}", flush=True)
    added = percentile(heard.delays, 0.99) - median(direct)
    yield Found(f"{STREAMS} streams, p99 added delay", added * 1000, "ms", 100)


def memory(bench: Bench, length: Length) -> Iterator[Found]:
    """Alternately whole answers and short streams."""
    with bench.proxy(BOTH) as proxy:
        answers = asked(bench, proxy, 5_000, 0)
        early = proxy.memory
        answers = asked(bench, proxy, 100_000, answers)
        late = proxy.memory
    print(f"  {early:.1f} MB after 5,000 answers and {late:.1f} MB after {answers:,}", flush=True)
    yield Found("memory after 100,000 answers, growth", late - early, "MB", 20)


def asked(bench: Bench, proxy: Process, until: int, answers: int) -> int:
    """Send requests until there are `until` answers; returns their number, which includes `answers`."""
    kinds = (asks.openai(), asks.openai(stream=True, model=SHORT))
    while answers < until:
        answers += sum(hammer(proxy.port, ask, 1, bench.folder) for ask in kinds)
    return answers


def start(bench: Bench, length: Length) -> Iterator[Found]:
    taken = []
    for _ in range(STARTS):
        began = time.perf_counter()
        with bench.proxy(BOTH):
            taken.append(time.perf_counter() - began)
    print(f"  {', '.join(f'{one:.2f}' for one in taken)} s", flush=True)
    yield Found("start to ready", median(taken), "s", 1.5)


def percentile(values: list[float], at: float) -> float:
    return sorted(values)[int(at * len(values))]


Part = Callable[[Bench, Length], Iterator[Found]]
KERNEL: Mapping[str, Part] = {
    "whole": whole,
    "chain": chain,
    "latency": latency,
    "tokens": tokens,
    "paced": paced,
    "memory": memory,
    "start": start,
}
