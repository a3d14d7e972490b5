"""The simulator embeds."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from proxy.upstreams.demo import Simulator

from .asking import Client, asking


@pytest.fixture
def simulator() -> Simulator:
    return Simulator()


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[Client]:
    async with asking(simulator) as client:
        yield client


async def test_embeddings_are_unit_vectors_that_rank_by_meaning(client: Client) -> None:
    texts = ["How do I bake bread?", "Baking bread at home", "The capital of France is Paris", ""]
    status, document = await client.ask("/api/embed", model="demo-embed", input=texts)
    vectors = np.array(document["embeddings"])
    assert status == 200 and vectors.shape == (4, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1
    assert document["prompt_eval_count"] > 0


async def test_fewer_dimensions_are_the_first_ones_at_unit_length(client: Client) -> None:
    async def embedded(**body: Any) -> Any:
        _, document = await client.ask("/api/embed", model="demo-embed", input="Hi", **body)
        return np.array(document["embeddings"][0])

    full, short = await embedded(), await embedded(dimensions=8)
    assert np.allclose(short, full[:8] / np.linalg.norm(full[:8]), atol=1e-6)
    assert len(await embedded(dimensions=9_999)) == 384


@pytest.mark.parametrize("empty", [{}, {"input": ""}, {"input": []}])
async def test_nothing_to_embed_only_loads(simulator: Simulator, client: Client, empty: dict[str, Any]) -> None:
    status, document = await client.ask("/api/embed", model="demo-embed", **empty)
    assert (status, document["embeddings"], simulator.loads) == (200, [], 1)


async def test_the_legacy_endpoint_gives_one_vector_that_is_not_normalised(client: Client) -> None:
    _, document = await client.ask("/api/embeddings", model="demo-embed", prompt="Hi")
    assert np.linalg.norm(document["embedding"]) == pytest.approx(10.0)
    assert (await client.ask("/api/embeddings", model="demo", prompt="Hi"))[0] == 500
