"""Compares the proxy with another one in Python, LiteLLM's, with the same upstream and load.

LiteLLM is not a dependency: `LITELLM=/a/venv/bin/litellm python -m tests.bench peers`.
"""

# ruff: noqa: T201  (a command line prints)

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Final

from tests.bench import asks
from tests.bench.load import one_caller
from tests.bench.parts import CALLS, Length, Part, Served, interleaved, ratio
from tests.bench.processes import MEASURED, Bench, Process, free_port, serving
from tests.bench.report import Found
from tests.bench.upstream import MODEL

SECONDS: Final = 5
"""Minimum seconds per server and round: in less, LiteLLM may not finish a single stream."""
WHERE: Final = "LITELLM"
"""Environment variable with the command to measure."""
OURS: Final = "usage, timeouts, cache, fallback, retry"
"""The packaged chain without plugins that only some calls use."""
CONFIG: Final = """\
model_list:
  - model_name: "{model}"
    litellm_params: {{model: "ollama_chat/{model}", api_base: "http://127.0.0.1:{upstream}"}}
    model_info: {{mode: chat, max_tokens: 4096, input_cost_per_token: 0.0000001, output_cost_per_token: 0.0000001}}
litellm_settings: {{telemetry: false}}
general_settings: {{dangerously_permit_weak_or_unset_master_key: true}}
"""


@contextmanager
def litellm(bench: Bench, command: str) -> Iterator[Process]:
    """A single process without records, which logs errors only; with prices, so that it does not look them up."""
    port, config = free_port(), bench.folder / "litellm.yaml"
    config.write_text(CONFIG.format(model=MODEL, upstream=bench.upstream))
    told = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # otherwise it fetches prices
    arguments = ["env", *(f"{name}={value}" for name, value in told.items()), command]
    arguments += ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with serving(arguments, port, {MEASURED}, "/health/liveliness", config.with_suffix(".log")) as process:
        yield process


def beside(bench: Bench, length: Length) -> Iterator[Found]:
    """Whole answers and streams of 200 tokens for 32 callers, and for a single caller."""
    if (command := os.environ.get(WHERE)) is None:
        print(f"  is left out: {WHERE} in the environment does not say where the other proxy is")
        return
    with ExitStack() as stack:
        url = f"database: {{url: 'sqlite:///{bench.folder}/peers.db'}}\n"
        memory = "stores: {own: {memory: {max_bytes: 20000000}}}\n"
        plugins = "plugins: {usage: {}, timeouts: {}, cache: {store: own}, fallback: {}, retry: {}}\n"
        processes = {
            "ours": stack.enter_context(bench.proxy(OURS, more=url + memory + plugins)),
            "LiteLLM": stack.enter_context(litellm(bench, command)),
        }
        for name, ask in (("whole answers", asks.openai()), ("streams of 200 tokens", asks.openai(stream=True))):
            print(f"  {name}:")
            servers = {peer: Served(process, ask) for peer, process in processes.items()}
            samples = interleaved(bench, servers, Length(length.rounds, max(SECONDS, length.seconds)))
            yield Found(f"{name}, ours / LiteLLM's", ratio(samples, "ours", "LiteLLM"), "", 1.0, least=True)
        yield Found("one caller, p50 ours / LiteLLM's", waiting(processes, length), "", 1.0)
        for peer, process in processes.items():
            print(f"  {peer}: {process.memory:.0f} MB")


def waiting(processes: Mapping[str, Process], length: Length) -> float:
    waited: dict[str, list[float]] = {peer: [] for peer in processes}
    for _ in range(length.rounds):
        for peer, process in processes.items():
            waited[peer] += one_caller(process.port, asks.openai(), CALLS // 4)
    for peer, taken in waited.items():
        print(f"  {peer:<30} p50 {median(taken) * 1e6:.0f} µs", flush=True)
    return median(waited["ours"]) / median(waited["LiteLLM"])


PEERS: Mapping[str, Part] = {"peers": beside}
