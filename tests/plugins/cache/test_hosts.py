"""The cache in front of several hosts with different weights under the same name."""

from __future__ import annotations

import asyncio

from proxy.upstreams.demo import CATALOGUE, Fault, Model, Simulator
from tests.conftest import Running, Start
from tests.proxy.upstreams.test_pool import pooled
from tests.whole.asking import asked, settled, user, whole
from tests.whole.test_openai_upstream import far

CACHE = "plugins: {cache: {}}\nchains: {chat: [cache], embeddings: [cache]}"
FIRST, OTHER = "a" * 10, "b" * 10
"""Digests as in the answers' header; keys use the first host's."""


def weights(digit: str) -> list[Model]:
    return [Model(one.name, one.capabilities, digest=digit * 64) for one in CATALOGUE]


async def digest_and_outcome(run: Running, number: int) -> tuple[str, str]:
    """The digest of the model that answered, and the cache's outcome."""
    answer = await run.chat(messages=user(f"question {number}"))
    await whole(answer)
    return answer.headers["x-gemmapy-digest"], answer.headers["x-gemmapy-cache"]


async def test_an_answer_of_other_weights_is_not_cached(start: Start) -> None:
    hosts = [Simulator(models=weights(digit), delay=0.001) for digit in "ab"]
    async with pooled(start, hosts, CACHE, slots=1) as run:
        found = await asyncio.gather(*(digest_and_outcome(run, number) for number in range(8)))
        await settled(run)
        assert {digest for digest, _ in found} == {FIRST, OTHER}
        for number, (digest, _) in enumerate(found):
            again = await digest_and_outcome(run, number)
            assert again == (FIRST, "hit") if digest == FIRST else again[1] == "miss", (number, digest, again)


async def test_embeddings_of_other_weights_are_neither_cached_nor_mixed_with_cached_ones(start: Start) -> None:
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


async def test_another_url_of_an_openai_upstream_is_a_miss(start: Start) -> None:
    """Servers with OpenAI's API do not report a digest, so the key has their URL and options."""
    chain = "plugins: {cache: {}}\nchains: {chat: [cache]}\n"
    async with far(Simulator()) as one, far(Simulator()) as other, start(far_of(chain, one)) as run:
        for text in (far_of(chain, one), far_of(chain, other), far_of(chain, other, ", options: [top_k]")):
            run.configure(text)
            assert await run.server.reload()
            told = [(await run.chat(top_k=3)).headers["x-gemmapy-cache"] for _ in range(2)]
            assert told == ["miss", "hit"]


def far_of(chain: str, url: str, more: str = "") -> str:
    return f"{chain}upstreams: {{far: {{openai: '{url}'{more}}}}}\n"
