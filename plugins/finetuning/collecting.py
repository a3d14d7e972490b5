"""Creates a dataset from a caller's stored chat completions, as a file of the caller's.

It does not depend on the feature that stores them: it reads them as that exports a caller's data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import orjson
from pydantic import Field

from plugins.finetuning.examples import Example, example
from plugins.finetuning.forms import Metadata, Name, Suffix
from plugins.finetuning.reading import PURPOSE, Datasets
from plugins.finetuning.store import fits
from proxy.caller_data import CallerData
from proxy.config import Strict
from proxy.errors import BadCall
from proxy.host import Host
from proxy.types import JSON

PIECE: Final = 1024 * 1024
"""Bytes written at once."""
SAID: Final = ("role", "content", "tool_calls")
COMPLETE: Final = ("stop", "tool_calls")
ASKING: Final = ("user", "tool")


class Collect(Strict):
    """since: Unix seconds.  limit: maximum number of examples."""

    source: Literal["stored"]
    model: Name | None = None
    metadata: Metadata | None = None
    since: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    name: Suffix = "stored.jsonl"

    def wants(self, document: JSON) -> bool:
        return (
            isinstance(document, dict)
            and document.get("object") == "chat.completion"
            and document.get("created", 0) >= self.since
            and self.model in (None, document.get("model"))
            and fits(document.get("metadata") or {}, self.metadata or {})
        )


@dataclass(slots=True)
class Collecting:
    """A dataset in the making.  left_out: completions that are not usable as examples."""

    datasets: Datasets
    host: Host
    examples: int = 0
    tokens: int = 0
    left_out: int = 0

    async def make(self, owner: str, wish: Collect) -> dict[str, JSON]:
        """Raises BadCall if there are no usable completions."""
        pieces = self.pieces(owner, wish)
        first = await anext(pieces, None)
        if first is None:
            left = f"; {self.left_out} that fit are no examples" if self.left_out else ""
            raise BadCall(f"None of your stored chat completions can be used for training{left}.", code="no_examples")
        name = f"{wish.name.removesuffix('.jsonl')}.jsonl"  # the ending decides how a file is parsed
        file = await self.datasets.file_store.add(owner, name, PURPOSE, chained(first, pieces))
        return {
            "object": "fine_tuning.dataset",
            "file_id": file.id,
            "bytes": file.bytes,
            "examples": self.examples,
            "tokens": self.tokens,
            "left_out": self.left_out,
        }

    async def pieces(self, owner: str, wish: Collect) -> AsyncIterator[bytes]:
        waiting = bytearray()
        async for document in self.stored_completions().export(owner):
            if not wish.wants(document) or (found := self.example(document)) is None:
                continue
            self.examples += 1
            self.tokens += found.tokens
            waiting += orjson.dumps(found.document) + b"\n"
            while len(waiting) >= PIECE:
                yield bytes(waiting[:PIECE])
                del waiting[:PIECE]
            if self.examples == wish.limit:
                break
        if waiting:
            yield bytes(waiting)

    def stored_completions(self) -> CallerData:
        for one in self.host.caller_data:
            if one.name == "stored":
                return one
        message = "This server keeps no chat completions: its configuration has to name the plugin `stored`."
        raise BadCall(message, param="source", code="nothing_stored")

    def example(self, document: dict[str, JSON]) -> Example | None:
        """The completion as an example; None if nothing was asked, the answer is incomplete, or there are images."""
        try:
            choice = document["choices"][0]
            asked = any(one["role"] in ASKING for one in document["input"])
            if asked and choice["finish_reason"] in COMPLETE:
                answer = {name: choice["message"][name] for name in SAID if choice["message"].get(name)}
                tools = {"tools": document["tools"]} if document.get("tools") else {}
                return example({"messages": [*document["input"], answer], **tools})
        except (BadCall, KeyError, IndexError, TypeError):
            pass
        self.left_out += 1
        return None


async def chained(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for one in others:
        yield one
