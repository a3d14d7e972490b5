"""The events that name the sources of an answer."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from proxy.asks import JSON


class Searched(Struct, frozen=True, tag=True, array_like=True):
    """The client's own files were searched for the answer; this is its first event.

    results: what was found, in the form that clients read; None if the client did not request it.
    """

    queries: tuple[str, ...]
    results: tuple[Mapping[str, JSON], ...] | None = None
    choice: int = 0


class Sources(Struct, frozen=True, tag=True, array_like=True):
    """The sources of a choice; comes before its Finish.

    passages: each has `n`, the number by which the answer cites it, `title`, `document_id`, `content` and more, in the
        form that clients read.
    annotations: OpenAI's, for the places of the answer that cite a passage.
    """

    passages: tuple[Mapping[str, JSON], ...]
    annotations: tuple[Mapping[str, JSON], ...] = ()
    choice: int = 0
