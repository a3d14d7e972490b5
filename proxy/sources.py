"""What an answer rests on, as events of its stream."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from proxy.asks import JSON


class Searched(Struct, frozen=True, tag=True, array_like=True):
    """The client's own files were searched before the answer; comes before all else of it.

    results: what was found, as a client reads it; None where it does not want to be told.
    """

    queries: tuple[str, ...]
    results: tuple[Mapping[str, JSON], ...] | None = None
    choice: int = 0


class Sources(Struct, frozen=True, tag=True, array_like=True):
    """What a choice rests on; comes before its Finish.

    passages: of each `n`, as the answer names it, `title`, `document_id`, `content` and more, as a client reads it.
    annotations: OpenAI's, for the places of the answer that name a passage.
    """

    passages: tuple[Mapping[str, JSON], ...]
    annotations: tuple[Mapping[str, JSON], ...] = ()
    choice: int = 0
