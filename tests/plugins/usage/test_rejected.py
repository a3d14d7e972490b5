"""Answers that are generated and not delivered cost their tokens, by the price of the model that generated them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from proxy.observer import HeldBackAnswer
from proxy.upstreams import choices, repair
from proxy.upstreams.demo import Fault, Said, Simulator
from tests.conftest import ASK, Running, Start
from tests.plugins.usage.asking import OPS, A, chat, config, get, written

PRICES = (
    "costs: {prices: {models: {'demo:latest': {input: 1, output: 2}, 'demo-vision*': {input: 10, output: 20}}, "
    "cloud: {'demo:latest': {input: 3, output: 5}, 'demo-vision*': {input: 7, output: 11}}}}\n"
)
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"required": ["a"]}}}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALLED = {"tools": [LOOK], "tool_choice": "required"}
WORDS = "word " * 8


def chained(folder: Path, chain: str) -> str:
    text = config(f"sqlite:///{folder}/r.db", PRICES, chain)
    budget = '{"per": "all", "tokens_per_day": 1000000000, "money_per_day": 1000}'
    text = text.replace('"limits": {}', f'"limits": {{"limits": [{budget}]}}')
    return text.replace('"fallback": {}', '"fallback": {"on": ["invalid_answer"], "models": {"demo": ["demo-vision"]}}')


def said(body: dict[str, Any]) -> Said:
    """An answer of one of the models that matches no schema."""
    return Said("no such thing" if body["model"] == "demo:latest" else '{"a": 1}')


@pytest.mark.parametrize("chain", ["metrics, usage, limits, cache, fallback", "usage, limits, fallback"])
async def test_a_rejected_answer_costs_the_price_of_its_model(start: Start, tmp_path: Path, chain: str) -> None:
    async with start(chained(tmp_path, chain), Simulator(say=said)) as run:
        body = {**ASK, "messages": [{"role": "user", "content": WORDS}], "response_format": SCHEMA}
        response = await run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=A)
        used = (await response.json())["usage"]
        (one,) = await written(run, 1)
        assert (one["model"], one["error"], one["estimated"]) == ("demo-vision:latest", "", "")
        given = used["prompt_tokens"], used["completion_tokens"]
        lost = one["prompt_tokens"] - given[0], one["completion_tokens"] - given[1]
        assert lost[0] > 0 and lost[1] > 0 and given[1] > 0

        def paid(*prices: int) -> int:
            counts: tuple[int, ...] = (*lost, *given)
            return 1000 * sum(price * count for price, count in zip(prices, counts, strict=True))

        assert (one["cost"], one["prompt_cost"], one["cloud"]) == (
            paid(1, 2, 10, 20),
            paid(1, 0, 10, 0),
            paid(3, 5, 7, 11),
        )
        (limit,) = (await get(run, "/api/limits", OPS))["data"]
        taken = {name: limit["limits"][name]["used"] for name in ("tokens_per_day", "money_per_day")}
        assert taken["tokens_per_day"] == sum(lost) + sum(given)
        assert Decimal(taken["money_per_day"]) * 10**9 == one["cost"]


def held_back(monkeypatch: pytest.MonkeyPatch) -> list[HeldBackAnswer]:
    """A list to which every answer that is held back is added."""
    found: list[HeldBackAnswer] = []
    report_cost: Callable[..., Any] = repair.report_cost

    def noting(made: HeldBackAnswer, source: Any) -> Any:
        found.append(made)
        return report_cost(made, source)

    monkeypatch.setattr(repair, "report_cost", noting)
    return found


async def disconnected(run: Running, held: list[HeldBackAnswer], pieces: int, **body: Any) -> dict[str, Any]:
    """The row of a stream whose client disconnects once this many pieces of the answer are held back."""
    asked = {**ASK, "messages": [{"role": "user", "content": WORDS}], "stream": True, **body}
    asking = asyncio.ensure_future(run.http.post(f"{run.url}/v1/chat/completions", json=asked, headers=A))
    async with asyncio.timeout(30):
        while not held or held[-1].pieces < pieces:  # noqa: ASYNC110  (there is no event)
            await asyncio.sleep(0.001)
    if asking.done():
        asking.result().close()
    asking.cancel()
    (row,) = await written(run, 1)
    return row


@pytest.mark.parametrize("chain", ["usage", "usage, cache", "usage, cache, fallback, retry"])
async def test_a_forced_tool_call_abandoned_midway_costs_its_tokens_so_far(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str
) -> None:
    held = held_back(monkeypatch)
    async with start(chained(tmp_path, chain), Simulator(faults=[Fault("stall", after=4)])) as run:
        row = await disconnected(run, held, 4, **CALLED)
    assert (row["error"], row["model"], row["attempts"]) == ("client_left", "demo:latest", 1)
    assert row["estimated"] == "prompt_tokens completion_tokens"
    assert (row["prompt_tokens"], row["completion_tokens"], row["cost"]) == (21, 4, 29_000)


async def test_reasoning_before_a_forced_tool_call_is_counted_separately(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = held_back(monkeypatch)
    thinking = Simulator(faults=[Fault("stall", after=30)], say=lambda body: Said("x" * 200, thinking="so " * 5))
    async with start(chained(tmp_path, "usage"), thinking) as run:
        row = await disconnected(run, held, 30, model="demo-thinking", **CALLED)
    assert row["completion_tokens"] == 30 and 0 < row["thinking_tokens"] < 30


async def test_a_forced_tool_call_that_is_cut_off_and_retried_costs_both_attempts(start: Start, tmp_path: Path) -> None:
    async with start(chained(tmp_path, "usage, retry"), Simulator(faults=[Fault("eof", after=4)])) as run:
        body = {"stream": True, "stream_options": {"include_usage": True}, **CALLED}
        await chat(run, A, **body)
        await chat(run, A, **body)
        cut, whole = await written(run, 2)
    assert (cut["error"], cut["attempts"], cut["estimated"]) == ("", 2, "prompt_tokens completion_tokens")
    assert cut["completion_tokens"] == whole["completion_tokens"] + 4 and whole["estimated"] == ""


@pytest.mark.parametrize("chain", ["usage", "usage, cache"])
@pytest.mark.parametrize("form", [{}, {"stream": True}, {"response_format": {"type": "json_object"}}])
async def test_generated_choices_cost_although_none_is_delivered(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str, form: dict[str, Any]
) -> None:
    """The client disconnects while one of three choices has not begun yet."""
    merged: list[choices.MergedReplies] = []

    class Watched(choices.MergedReplies):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            merged.append(self)

    monkeypatch.setattr(choices, "MergedReplies", Watched)
    stalling = Simulator(faults=[Fault("stall")], say=lambda body: Said('{"a": 1}'))
    async with start(chained(tmp_path, chain), stalling) as run:
        asked = {**ASK, **form}
        asking = asyncio.ensure_future(
            run.http.post(f"{run.url}/v1/chat/completions", json={**asked, "n": 3}, headers=A)
        )
        async with asyncio.timeout(30):
            while not merged or len(merged[0].usages) < 2:  # noqa: ASYNC110  (there is no event)
                await asyncio.sleep(0.001)
        asking.cancel()
        await written(run, 1)
        async with run.http.post(f"{run.url}/v1/chat/completions", json=asked, headers=A) as response:
            await response.read()
        several, single = await written(run, 2)
    assert (several["error"], several["estimated"], several["model"]) == ("client_left", "", "demo:latest")
    assert several["completion_tokens"] == 2 * single["completion_tokens"] > 0
    assert several["prompt_tokens"] == 2 * single["prompt_tokens"]
    assert several["cost"] == 2 * single["cost"]
