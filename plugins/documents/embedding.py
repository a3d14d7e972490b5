"""Embeds texts through a chain of the server, so that calls are cached, retried and counted like any other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from plugins.documents.payer import Payer
from proxy.errors import BadCall, ProxyError, UpstreamError
from proxy.host import Host
from proxy.streams import collect
from proxy.types import Call, Embed
from proxy.wire.ids import new_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BATCH: Final = 32
"""Texts per call."""
HALVES: Final = 64
"""Characters below which a text is not halved again, however small the model's context."""


@dataclass(frozen=True, slots=True)
class Embedder:
    """route: the chain of the calls.  turns: limits concurrent calls.

    The calls count for the payer, with its limits.  The operator chooses the model, so the payer's API key need not
    allow it.
    """

    host: Host
    route: str
    turns: asyncio.Semaphore

    async def vectors(self, texts: Sequence[str], model: str, payer: Payer) -> NDArray[np.float32]:
        """One row per text: float32, shape (texts, dimensions), unit length.  Raises ProxyError."""
        import numpy as np

        batches = [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.batch(batch, model, payer)) for batch in batches]
        except ExceptionGroup as several:
            raise first_of(several) from None
        return np.concatenate([task.result() for task in tasks])

    async def batch(self, texts: Sequence[str], model: str, payer: Payer) -> NDArray[np.float32]:
        try:
            return await self.asked(texts, model, payer)
        except BadCall as error:
            if not too_long(error):
                raise
        import numpy as np

        return np.stack([await self.long(text, model, payer) for text in texts])

    async def long(self, text: str, model: str, payer: Payer) -> NDArray[np.float32]:
        """The vector of a text that may exceed the model's context: then the normalised sum of its halves' vectors."""
        import numpy as np

        try:
            (only,) = await self.asked([text], model, payer)
            return np.asarray(only, dtype=np.float32)
        except BadCall as error:
            if not too_long(error) or len(text) < HALVES:
                raise
        middle = len(text) // 2
        halves = [await self.long(half, model, payer) for half in (text[:middle], text[middle:])]
        total = np.sum(halves, axis=0)
        return np.asarray(total / (np.linalg.norm(total) or 1.0), dtype=np.float32)

    async def asked(self, texts: Sequence[str], model: str, payer: Payer) -> NDArray[np.float32]:
        import numpy as np

        async with self.turns:
            call = Call(new_id("rag_"), self.route, model, Embed(inputs=tuple(texts)), False, *payer)
            answer = await collect(await self.host.send(call))
        if answer.vectors is None or len(answer.vectors.values) != len(texts):
            raise UpstreamError(f"The model '{model}' gave no vectors.", "invalid_answer")
        vectors = np.asarray(answer.vectors.values, dtype=np.float32)
        if not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
            raise UpstreamError(f"The model '{model}' gave a vector of zeros.", "invalid_answer")
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def first_of(several: ExceptionGroup[Exception]) -> Exception:
    """One of the errors of concurrent batches: unexpected ones before ProxyErrors.

    The group is caught as such, because Python before 3.11.4 wraps what is raised under `except*` in another group.
    """
    known, faults = several.split(ProxyError)
    one = (faults or known or several).exceptions[0]
    return first_of(one) if isinstance(one, ExceptionGroup) else one


def too_long(error: BadCall) -> bool:
    return error.code == "context_length_exceeded"
