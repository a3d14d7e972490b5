"""Embeddings, cached by text: a batch with one new text requests only that one from the upstream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from plugins.cache import entry, key
from plugins.cache.directives import Directives, NotKept
from plugins.cache.invalidations import Invalidations
from plugins.cache.stats import Stats
from proxy.errors import UpstreamError
from proxy.host import Host
from proxy.stores.keyvalue import KeyValue, NewValue, StoreError
from proxy.streams import Answer, collect, replay
from proxy.types import Call, Embed, Handler, Reply, Usage
from proxy.types import Vectors as VectorsEvent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Row = tuple[NDArray[np.float32], int | None, Mapping[str, str]]
    """A vector, the number of tokens of its text, and the facts of its reply."""


NOTHING: Final = Usage(None, 0)


class CachingTerms(Struct, frozen=True):
    """How the texts of a call are cached: their model's stamp, the tenant, and the time to live in seconds."""

    stamp: str
    tenant: str
    ttl: float


class Vectors:
    def __init__(self, store: KeyValue, stats: Stats, invalidations: Invalidations, host: Host) -> None:
        self.store = store
        self.stats = stats
        self.invalidations = invalidations
        self.host = host

    async def answered(self, call_next: Handler, directives: Directives, terms: CachingTerms, call: Call) -> Reply:
        """The vectors of all texts in the order requested: cached ones, and the rest from the upstream."""
        ask = call.ask
        if not isinstance(ask, Embed) or not ask.inputs:
            return await call_next(call)
        texts = list(dict.fromkeys(ask.inputs))
        prefix = key.prefix_of("cache", terms.tenant)
        told = {text: canonical_form(ask, text, call.route, terms.stamp) for text in texts}
        keys = {text: prefix + key.key_of(told[text]) for text in texts}
        known, age = await self.known(keys, directives) if directives.reads else ({}, 0.0)
        new = [text for text in texts if text not in known]
        if not new:
            facts = known[texts[0]][2]
            self.saved(facts.get("model", call.model), known)
            return Reply.of(replay(together(ask.inputs, known)), **{**facts, "cache": "hit", "age": str(int(age))})
        if directives.only:
            raise NotKept
        wanted = {text: (keys[text], told[text]) for text in texts}
        reply, asked, took = await self.fetched(call_next, call, {text: wanted[text] for text in new}, terms)
        if known and (length_of(asked) != length_of(known) or not entry.is_of(reply.facts, terms.stamp)):
            known = {}  # computed with other weights under the same name
            reply, asked, took = await self.fetched(call_next, call, wanted, terms)
        self.saved(reply.facts.get("model", call.model), known)
        facts = {**reply.facts, "cache": "miss"}
        if known:
            facts["cached-inputs"] = f"{len(known)} of {len(texts)}"
        if kept := kept_of(ask.inputs, known | asked, asked):
            facts["kept-tokens"] = str(kept)
        return Reply.of(replay(together(ask.inputs, known | asked, took)), **facts)

    def saved(self, model: str, known: dict[str, Row]) -> None:
        """Count the tokens saved by cached vectors; the seconds saved are unknown."""
        self.stats.saved(model, Usage(sum(row[1] or 0 for row in known.values()), 0))

    async def fetched(
        self, call_next: Handler, call: Call, new: dict[str, tuple[str, bytes]], terms: CachingTerms
    ) -> tuple[Reply, dict[str, Row], Usage]:
        """The upstream's reply, its vectors and their usage; also caches them.

        new: by text, its key and what the key is a digest of.
        """
        ask = Embed(inputs=tuple(new), dimensions=call.ask.dimensions if isinstance(call.ask, Embed) else None)
        began = self.host.clock.monotonic()
        reply = await call_next(call.but(ask=ask))
        answer = await collect(reply)
        rows = rows_of(answer, entry.stored_facts(reply.facts), list(new))
        if entry.is_of(reply.facts, terms.stamp):
            model, tenant = reply.facts.get("model", call.model), terms.tenant
            news = [
                NewValue(
                    where,
                    entry.pack_vector(*rows[text]),
                    terms.ttl,
                    key.label_of(of_one(call, text), model, tenant, told),
                )
                for text, (where, told) in new.items()
            ]
            await self.keep(news, began)
        return reply, rows, answer.usage or NOTHING

    async def known(self, keys: dict[str, str], directives: Directives) -> tuple[dict[str, Row], float]:
        """The cached vectors that are not too old for the call, and the age of the oldest in seconds."""
        try:
            found = await self.store.get(list(keys.values()))
        except StoreError:
            return {}, 0.0
        now, rows, oldest = self.host.clock.time(), {}, 0.0
        for text, kept in zip(keys, found, strict=True):
            if kept is None or (directives.oldest is not None and now - kept.born > directives.oldest):
                continue
            if (row := entry.unpack_vector(kept.value)) is not None:
                rows[text], oldest = row, max(oldest, now - kept.born)
        return rows, oldest

    async def keep(self, news: list[NewValue], began: float) -> None:
        """Cache vectors, except those cleared since their request began; one cleared during the write is deleted."""
        going = [one for one in news if not self.was_taken(one, began)]
        with suppress(StoreError):  # logged by the store
            await self.store.set(going)
            if late := [one.key for one in going if self.was_taken(one, began)]:
                await self.store.delete(late)

    def was_taken(self, one: NewValue, began: float) -> bool:
        return self.invalidations.took(began, one.key, lambda: one.label)


def rows_of(answer: Answer, facts: Mapping[str, str], texts: list[str]) -> dict[str, Row]:
    """The upstream's vectors by text.  Raises UpstreamError if their number is not that of the texts."""
    if answer.vectors is None or len(answer.vectors.values) != len(texts):
        raise UpstreamError("The upstream sent no vectors.", "server")
    tokens = entry.shared_out(answer.usage.prompt_tokens if answer.usage else None, texts)
    return {
        text: (vector, count, facts) for text, vector, count in zip(texts, answer.vectors.values, tokens, strict=True)
    }


def canonical_form(ask: Embed, text: str, route: str, stamp: str) -> bytes:
    """Everything that determines the vector of a text, as the input of its key."""
    return key.canonical_form([ask.dimensions, text], route, stamp)


def only_key(call: Call, ask: Embed, stamp: str) -> str:
    """The key of a call's only text; "" if it has several, each with its own key."""
    return key.key_of(canonical_form(ask, ask.inputs[0], call.route, stamp)) if len(set(ask.inputs)) == 1 else ""


def length_of(rows: dict[str, Row]) -> int:
    return len(next(iter(rows.values()))[0])


def of_one(call: Call, text: str) -> Call:
    return call.but(ask=Embed(inputs=(text,)))


def kept_of(inputs: Sequence[str], rows: dict[str, Row], asked: dict[str, Row]) -> int:
    """Prompt tokens that were not processed now: those of cached texts and of repeated ones; 0 if not all are known."""
    told, read = [rows[text][1] for text in inputs], [row[1] for row in asked.values()]
    if None in told:
        return 0
    return sum(one or 0 for one in told) - sum(one or 0 for one in read)


def together(inputs: Sequence[str], rows: dict[str, Row], took: Usage = NOTHING) -> list[VectorsEvent | Usage]:
    """The events of the reply.  took: the upstream's usage, for its times; tokens are the sum over all texts."""
    import numpy as np

    counts = [rows[text][1] for text in inputs]
    known = [count for count in counts if count is not None]
    vectors = np.stack([rows[text][0] for text in inputs]).astype(np.float32)
    prompt = sum(known) if len(known) == len(counts) else None
    return [VectorsEvent(vectors), Usage(prompt, 0, None, took.load_ns, took.prompt_ns, took.eval_ns)]
