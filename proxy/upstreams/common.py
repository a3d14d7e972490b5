"""Functions that all kinds of upstreams share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from proxy.background import in_thread
from proxy.errors import BadCall
from proxy.estimates import letters_beside
from proxy.streams import replay
from proxy.types import Chat, Complete, Embed, Event, Reply, Usage, Vectors

Planned = TypeVar("Planned")
LARGE: Final = 50_000
"""Characters of functions and schemas from which on a request is planned in a thread and not in the event loop."""


async def planned(ask: Chat | Complete, plan: Callable[[], Planned]) -> Planned:
    """The result of `plan`: in a thread if that takes long, so that others are served meanwhile."""
    if isinstance(ask, Chat) and letters_beside(ask) > LARGE:
        return await in_thread(plan)
    return plan()


def is_empty(ask: Chat | Complete) -> bool:
    """Whether the call only loads the model."""
    return not ask.messages if isinstance(ask, Chat) else ask.prompts == ("",) and not ask.raw


async def in_batches(
    ask: Embed, size: int, batch: Callable[[tuple[str, ...]], Awaitable[tuple[Vectors, Usage]]]
) -> Reply:
    """The vectors of all inputs, requested one batch after the other.  size: inputs in a batch."""
    if not ask.inputs:
        return Reply.of(replay([Usage(0, 0)]))
    found = [await batch(ask.inputs[at : at + size]) for at in range(0, len(ask.inputs), size)]
    return Reply.of(replay(merged(found, ask)))


def merged(batches: list[tuple[Vectors, Usage]], ask: Embed) -> list[Event]:
    """The batches as one.  Raises BadCall if the vectors do not have the requested dimensions."""
    import numpy as np

    values = np.concatenate([vectors.values for vectors, _ in batches])
    if ask.dimensions is not None and values.shape[1] != ask.dimensions:
        message = f"Invalid 'dimensions': this model's vectors have {values.shape[1]}."
        raise BadCall(message, param="dimensions", code="invalid_value")
    counts = [usage.prompt_tokens for _, usage in batches]
    known = [count for count in counts if count is not None]
    load = sum(usage.load_ns for _, usage in batches)
    return [Vectors(values), Usage(sum(known) if len(known) == len(counts) else None, 0, load_ns=load)]


def strict_refusal(name: str) -> BadCall:
    message = f"'{name}' cannot be honoured exactly, and this server is set to refuse that (params: strict)."
    return BadCall(message, param=name, code="unsupported_parameter")


def notes_text(notes: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={fate}" for name, fate in notes.items())
