"""The cache over several hosts: one has other weights by the same name, as it was not pulled anew with the rest."""

from __future__ import annotations

import asyncio

from proxy.upstreams.demo import CATALOGUE, Fault, Model, Simulator
from tests.conftest import Running, Start
from tests.proxy.upstreams.test_pool import pooled
from tests.whole.asking import asked, settled, user, whole

CACHE = "plugins: {cache: {}}\nchains: {chat: [cache], embeddings: [cache]}"
FIRST, OTHER = "a" * 10, "b" * 10
"""Digests as answers tell them; the first host's is the one that keys go by."""


def weights(digit: str) -> list[Model]:
    return [Model(one.name, one.capabilities, digest=digit * 64) for one in CATALOGUE]


async def of(run: Running, number: int) -> tuple[str, str]:
    """Which weights answered a question, and what the cache did."""
    answer = await run.chat(messages=user(f"question {number}"))
    await whole(answer)
    return answer.headers["x-gemmapy-digest"], answer.headers["x-gemmapy-cache"]


async def test_an_answer_of_other_weights_is_not_kept(start: Start) -> None:
    hosts = [Simulator(models=weights(digit), delay=0.001) for digit in "ab"]
    async with pooled(start, hosts, CACHE, slots=1) as run:
        found = await asyncio.gather(*(of(run, number) for number in range(8)))
        await settled(run)
        assert {digest for digest, _ in found} == {FIRST, OTHER}
        for number, (digest, _) in enumerate(found):
            again = await of(run, number)
            assert again == (FIRST, "hit") if digest == FIRST else again[1] == "miss", (number, digest, again)


async def test_vectors_of_other_weights_are_neither_kept_nor_mixed_with_those_that_are(start: Start) -> None:
    hosts = [Simulator(models=weights(digit)) for digit in "ab"]
    async with pooled(start, hosts, CACHE, slots=1) as run:
        known = await run.embed(input=["known", "too"])
        assert known.headers["x-gemmapy-digest"] == FIRST
        hosts[0].faults.append(Fault("stall", seconds=0.3, path="/api/embed"))
        held = asyncio.ensure_future(run.embed(input="held"))
        await asyncio.sleep(0.1)
        other = await run.embed(input=["new", "known", "too"])
        assert other.headers["x-gemmapy-digest"] == OTHER and "x-gemmapy-cached-inputs" not in other.headers
        assert asked(hosts[1], "/api/embed")[-1]["input"] == ["new", "known", "too"]
        assert (await held).status == 200
        again = [await run.embed(input=text) for text in ("known", "new")]
        assert [one.headers["x-gemmapy-cache"] for one in again] == ["hit", "miss"]
        assert again[0].headers["x-gemmapy-digest"] == FIRST
