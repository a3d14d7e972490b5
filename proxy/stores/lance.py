"""A vector store in LanceDB: in a directory, or in object storage by its URL."""

from __future__ import annotations

import asyncio
import re
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from proxy.stores.bounds import INDICES, METADATA, TENDING, bound_environment, bound_heaps, trim_heaps
from proxy.stores.conflicts import settled
from proxy.stores.faults import Missing, translated_errors
from proxy.stores.vectors import Alone, Found, Row, only_process

if TYPE_CHECKING:  # importing LanceDB takes more than a second: done in a thread when it is first needed
    import lancedb
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

P = ParamSpec("P")
T = TypeVar("T")
NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
ROW: Final = list(Row._fields)
FRESH: Final = timedelta(0)
"""How old the state that a search sees may be; on a local disk, checking for a newer one costs almost nothing."""
OLD: Final = timedelta(minutes=10)
"""How long earlier versions of a table are kept for searches that still read them."""
INDEXED: Final = 10_000
"""Rows from which on the vectors get an index; with fewer, a search compares all of them."""
BITS: Final = 4
PROBES: Final = 50
REFINE: Final = 4
"""With BITS and PROBES, this finds what comparing every vector finds, even for uniformly distributed vectors.  One bit
per coordinate would lose a third of them there, and need more exact comparisons."""
SAMPLED: Final = 64
"""Vectors per partition of the index that are loaded when the partitions are computed."""
OPEN: Final = 256
"""Maximum number of tables that are kept open."""
AT_ONCE: Final = 4
"""Maximum concurrent searches, because one that reads every row takes memory in proportion to them."""


def afresh(
    method: Callable[Concatenate[Lance, str, P], Awaitable[T]],
) -> Callable[Concatenate[Lance, str, P], Coroutine[Any, Any, T]]:
    """Repeat the method once if it fails because another process has dropped a table that was open here."""

    @wraps(method)
    async def tried(self: Lance, table: str, /, *args: P.args, **named: P.kwargs) -> T:
        try:
            return await method(self, table, *args, **named)
        except Missing:
            if self.opened.pop(table, None) is None:
                raise
            return await method(self, table, *args, **named)

    return tried


class Lance:
    """place: a directory, or a URL such as `s3://bucket/path`, with credentials from the environment."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.connection: lancedb.AsyncConnection | None = None
        self.opened: OrderedDict[str, lancedb.AsyncTable] = OrderedDict()
        self.prepared: set[str] = set()
        """Tables that are known to have their indices."""
        self.turns = asyncio.Semaphore(AT_ONCE)
        self.making = asyncio.Lock()

    async def connected(self) -> lancedb.AsyncConnection:
        if self.connection is None:
            bound_environment()
            await asyncio.to_thread(import_module, "lancedb")
            bound_heaps()
            self.connection = await self.connect(INDICES, METADATA)
        return self.connection

    async def connect(self, indices: int, metadata: int) -> lancedb.AsyncConnection:
        """Open the database.  indices, metadata: bytes of its caches for these."""
        import lancedb

        session = lancedb.Session(index_cache_size_bytes=indices, metadata_cache_size_bytes=metadata)
        return await lancedb.connect_async(self.place, read_consistency_interval=FRESH, session=session)

    async def table(self, name: str) -> lancedb.AsyncTable | None:
        """The open table; None if it does not exist."""
        if (table := self.opened.get(checked(name))) is not None:
            self.opened.move_to_end(name)
            return table
        connection = await self.connected()
        try:
            table = await connection.open_table(name)
        except ValueError as error:
            if "not found" in str(error):
                return None
            raise
        return self.keep(name, table)

    def keep(self, name: str, table: lancedb.AsyncTable) -> lancedb.AsyncTable:
        self.opened[name] = table
        while len(self.opened) > OPEN:
            self.opened.popitem(last=False)  # its memory is freed when it is no longer used
        return table

    async def made(self, name: str, dimensions: int, alone: Alone) -> lancedb.AsyncTable:
        """The table, created if necessary with its indices, to which rows are then only added."""
        async with self.making:
            if (table := await self.table(name)) is not None and name in self.prepared:
                return table
            async with alone(name):
                with translated_errors():  # inside the lock, which would mistake some of these errors for its own
                    return await self.create(name, dimensions)

    async def create(self, name: str, dimensions: int) -> lancedb.AsyncTable:
        """Create the table, or what is missing of it, because an earlier creation may have been interrupted."""
        if (table := await self.table(name)) is None:
            connection = await self.connected()
            table = self.keep(name, await connection.create_table(name, schema=schema(dimensions), exist_ok=True))
        await settled(lambda: prepare(table))
        self.prepared.add(name)
        return table

    @afresh
    async def add(
        self, table: str, rows: Sequence[Row], vectors: NDArray[np.float32], alone: Alone = only_process
    ) -> None:
        with translated_errors():
            opened = await self.made(checked(table), vectors.shape[1], alone)
            await opened.add(await asyncio.to_thread(arrow, rows, vectors))

    @afresh
    async def remove(self, table: str, document: str, first: int = 0, until: int | None = None) -> None:
        with translated_errors():
            which = f"document = {quoted(document)} AND version >= {int(first)}"
            if until is not None:
                which += f" AND version < {int(until)}"
            if (opened := await self.table(table)) is not None:
                await opened.delete(which)

    @afresh
    async def count(self, table: str, document: str, version: int) -> int:
        with translated_errors():
            which = f"document = {quoted(document)} AND version = {int(version)}"
            return 0 if (opened := await self.table(table)) is None else int(await opened.count_rows(which))

    @afresh
    async def nearest(
        self, table: str, question: NDArray[np.float32], top: int, among: Collection[str] | None = None
    ) -> list[Found]:
        async with self.searching(table) as opened:
            if opened is None:
                return []
            query = opened.query().nearest_to(question).distance_type("cosine").limit(top)
            if among is None:
                query = query.nprobes(PROBES).refine_factor(REFINE)
            else:  # with a filter, a search by index silently returns too few results
                query = query.where(one_of(among)).bypass_vector_index()
            return found(await query.select([*ROW, "vector", "_distance"]).to_arrow(), "_distance")

    @afresh
    async def matching(self, table: str, words: str, top: int, among: Collection[str] | None = None) -> list[Found]:
        async with self.searching(table) as opened:
            if opened is None:
                return []
            query = opened.query().nearest_to_text(words, columns=["text"]).limit(top)
            if among is not None:
                query = query.where(one_of(among))
            return found(await query.select([*ROW, "vector", "_score"]).to_arrow(), "_score")

    @asynccontextmanager
    async def searching(self, name: str) -> AsyncIterator[lancedb.AsyncTable | None]:
        async with self.turns:
            with translated_errors():
                yield await self.table(name)

    @afresh
    async def counts(self, table: str) -> Mapping[tuple[str, int], int]:
        counted: Counter[tuple[str, int]] = Counter()
        with translated_errors():
            if (opened := await self.table(table)) is None:
                return counted
            async for batch in await opened.query().select(["document", "version"]).to_batches():
                counted.update(zip(batch["document"].to_pylist(), batch["version"].to_pylist(), strict=True))
                await asyncio.sleep(0)
        return counted

    @afresh
    async def tend(self, table: str) -> None:
        with translated_errors():
            if await self.table(table) is None:
                return
            connection = await self.connect(TENDING, TENDING)
            try:
                with await connection.open_table(table) as opened:
                    await self.indexed(opened)
            finally:
                connection.close()  # type: ignore[no-untyped-call]
                await asyncio.to_thread(trim_heaps)

    async def indexed(self, table: lancedb.AsyncTable) -> None:
        from lancedb.index import IvfRq

        await settled(lambda: table.optimize(cleanup_older_than=OLD))
        indexed = any(one.columns == ["vector"] for one in await table.list_indices())
        if not indexed and await table.count_rows() >= INDEXED:
            await table.create_index("vector", config=IvfRq(distance_type="cosine", num_bits=BITS, sample_rate=SAMPLED))

    async def drop(self, table: str) -> None:
        self.opened.pop(checked(table), None)
        self.prepared.discard(table)
        with translated_errors():
            await (await self.connected()).drop_table(table, ignore_missing=True)

    async def tables(self) -> Collection[str]:
        with translated_errors():
            connection = await self.connected()
            page = await connection.list_tables(limit=1000)
            names = list(page.tables)
            while page.page_token:
                page = await connection.list_tables(page_token=page.page_token, limit=1000)
                names += page.tables
        return names

    async def aclose(self) -> None:
        for table in self.opened.values():
            table.close()  # type: ignore[no-untyped-call]
        self.opened.clear()
        if self.connection is not None:
            self.connection.close()  # type: ignore[no-untyped-call]
            self.connection = None


async def prepare(table: lancedb.AsyncTable) -> None:
    from lancedb.index import FTS, BTree

    there = {name for one in await table.list_indices() for name in one.columns}
    if "text" not in there:
        await table.create_index("text", config=FTS(), replace=True)
    if "document" not in there:
        await table.create_index("document", config=BTree(), replace=True)


def schema(dimensions: int) -> pa.Schema:
    import pyarrow as pa

    vector = pa.list_(pa.float32(), dimensions)
    kinds = (pa.string(), pa.int32(), pa.int32(), pa.string(), pa.string())
    return pa.schema([*zip(ROW, kinds, strict=True), ("vector", vector)])


def arrow(rows: Sequence[Row], vectors: NDArray[np.float32]) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    if not np.isfinite(vectors).all():  # a single such value would make searches silently find nothing
        raise ValueError("a vector contains a value that is not a number")
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
    columns: list[Any] = [*zip(*rows, strict=True), pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])]
    return pa.table(columns, schema=schema(vectors.shape[1]))


def found(answer: pa.Table, score: str) -> list[Found]:
    import numpy as np

    rows = zip(*(answer[name].to_pylist() for name in ROW), strict=True)
    width = answer.schema.field("vector").type.list_size
    vectors = np.asarray(answer["vector"].combine_chunks().flatten(), dtype=np.float32).reshape(-1, width)
    scores = answer[score].to_pylist()
    if score == "_distance":
        scores = [1.0 - one for one in scores]
    return [Found(Row(*row), one, vector) for row, one, vector in zip(rows, scores, vectors, strict=True)]


def checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a table or document")
    return name


def quoted(document: str) -> str:
    return f"'{checked(document)}'"


def one_of(documents: Collection[str]) -> str:
    return f"document IN ({', '.join(map(quoted, documents))})" if documents else "false"
