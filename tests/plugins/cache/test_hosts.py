"""The cache over several hosts that have other weights by the same name."""

from __future__ import annotations

import asyncio

from proxy.upstreams.demo import CATALOGUE, Fault, Model, Simulator
from tests.conftest import Running, Start
from tests.proxy.upstreams.test_pool import pooled
from tests.whole.asking import asked, settled, user, whole
from tests.whole.test_openai_upstream import far

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


async def test_another_server_behind_the_same_name_makes_another_answer(start: Start) -> None:
    """Of one that speaks OpenAI's API no digest of the weights is known."""
    chain = "plugins: {cache: {}}\nchains: {chat: [cache]}\n"
    async with far(Simulator()) as one, far(Simulator()) as other, start(far_of(chain, one)) as run:
        for text in (far_of(chain, one), far_of(chain, other), far_of(chain, other, ", options: [top_k]")):
            run.configure(text)
            assert await run.server.reload()
            told = [(await run.chat(top_k=3)).headers["x-gemmapy-cache"] for _ in range(2)]
            assert told == ["miss", "hit"]


def far_of(chain: str, url: str, more: str = "") -> str:
    return f"{chain}upstreams: {{far: {{openai: '{url}'{more}}}}}\n"
