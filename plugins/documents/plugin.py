"""Stores, indexes and searches documents, and adds matching passages to prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from plugins.documents import prompt
from plugins.documents.api import Documents as DocumentsApi
from plugins.documents.caller_data import CallerDocuments as Holding
from plugins.documents.collections import Collections
from plugins.documents.embedding import Embedder
from plugins.documents.file_text import FileTextExtractor
from plugins.documents.files import FileConverter
from plugins.documents.forms import Names, Top
from plugins.documents.index_upkeep import IndexUpkeep
from plugins.documents.ingest import Ingest
from plugins.documents.job_queue import JobQueue
from plugins.documents.moving import Mover, Moves
from plugins.documents.payer import Payer
from plugins.documents.repair import Repair
from plugins.documents.reranking import Reranker
from plugins.documents.rewriting import Rewriter
from plugins.documents.runner import Runner
from plugins.documents.scores import Hit
from plugins.documents.search import Fusion, Search, SearchRequest
from plugins.documents.searching import Lookup, Searches
from plugins.documents.store import Store
from plugins.documents.tables import FEATURE
from plugins.documents.vectorstores import tool
from plugins.documents.vectorstores.api import VectorStores
from plugins.documents.vectorstores.expiring import EVERY, Expiring
from plugins.documents.vectorstores.origins import Origins
from proxy.config import Strict
from proxy.errors import BadCall, ConfigError
from proxy.forms import checked
from proxy.host import Host, PeriodicTasks
from proxy.streams import begun
from proxy.types import JSON, Call, Chat, Handler, Reply, Route

FIELD: Final = "rag"
SWEEP: Final = 60.0
"""Seconds between two sweeps of removed tables in the index."""
MIB: Final = 1024 * 1024
NEEDED: Final = ("lancedb", "semantic_text_splitter")
Share = Annotated[float, Field(ge=0, le=1)]


def _template(text: str) -> str:
    for name in ("passages", "question"):
        if text.count("{" + name + "}") != 1:
            raise ValueError(f"it has {{{name}}} exactly once")
    return text


class Rag(Strict):
    """The options of the field `rag` in a call."""

    collections: Names = ()
    top: Top | None = None
    filter: JSON = None


class Documents:
    """Stores and searches documents, and adds passages that match a question to its prompt.

    Needs `pip install 'gemmapy-proxy[documents]'`.
    """

    place = "changes"
    fields = frozenset({FIELD, tool.FIELD})
    tables = FEATURE

    class Settings(Strict):
        store: str = "texts"
        """A `lancedb` store under `stores:`; `texts` is always available, in `data/lance`."""
        embed: Annotated[str, Field(min_length=1)] = "nomic-embed-text"
        """The embedding model of new collections; a collection keeps the one with which it was made."""
        chain: Annotated[str, Field(min_length=1)] = "embeddings"
        """The chain for embedding calls."""
        chunk: Annotated[int, Field(ge=200, le=8000)] = 1000
        """Maximum characters of a chunk, for documents that are added from then on."""
        top: Annotated[int, Field(ge=1, le=50)] = 4
        """Passages added to a question, unless the call says how many."""
        words: Share | None = None
        """How much words count in a search, from 0 to 1; the rest is the similarity of vectors.  If unset, this is
        decided for each question: by how much of it the texts contain, and by how well the model distinguishes
        texts."""
        fusion: Fusion = "scores"
        """How the two result lists are mixed: by their scores, or by their ranks, which is worse with a weak model."""
        rerank: str | None = None
        """A model that reads and grades the results for the final order, through the chain `internal`."""
        rerank_top: Annotated[int, Field(ge=2, le=50)] = 12
        """How many of the best passages it reads."""
        rerank_timeout: PositiveFloat = 20.0
        """Seconds that it may take; after that the order stays as it was."""
        closer: Annotated[int, Field(ge=0, le=50)] = 0
        """How many of the best passages are examined more closely, by embedding each of their pieces (cached like all
        embeddings); with a good model, a dozen improves results clearly. 0 turns this off."""
        min_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.2
        """Cosine from which a passage is added to a question.  Good values depend on the model: look at `explain`."""
        min_text: Annotated[float, Field(ge=0)] = 3.0
        """Text score (BM25) from which it is added whatever its cosine; passages that reach neither are not added."""
        budget: PositiveInt = 2000
        """Estimated tokens that all passages for one question may have together."""
        rewrite: str | None = None
        """A model that rewrites a question so that it can be searched for without its conversation, through the chain
        `internal`; if unset, the question is searched for as it is."""
        always: bool = False
        """Whether chats without `rag` use documents, too."""
        prompt: Annotated[str, AfterValidator(_template)] = prompt.TEMPLATE
        """The text that replaces the question, with `{passages}`, `{question}`, and `{fence}`, with which the lines
        around passages begin."""
        jobs: PositiveInt = 2
        """Documents that each process indexes at the same time."""
        embeds: PositiveInt = 4
        """Concurrent embedding calls of each process, for documents and questions together."""
        max_documents: PositiveInt = 100_000
        """Documents of one caller."""
        max_collections: PositiveInt = 100
        """Collections of one caller."""
        max_characters: PositiveInt = 100_000_000
        """Characters of one document."""
        max_file_bytes: PositiveInt = 128 * MIB
        """Bytes of a file."""
        read_timeout: PositiveFloat = 30.0
        """Seconds that converting a file to text may take."""
        read_memory: PositiveInt = 1024 * MIB
        """Bytes of memory that the process doing so may use."""

    def __init__(self, settings: Settings, host: Host) -> None:
        if missing := [name for name in NEEDED if find_spec(name) is None]:
            raise ConfigError([f"{' and '.join(missing)} cannot be imported: pip install 'gemmapy-proxy[documents]'"])
        self.settings = settings
        self.host = host
        index = host.vectors(settings.store)
        store = Store(host.database, host.clock, settings.max_documents)
        collections = Collections(host.database, host.clock, settings.embed, settings.max_collections)
        embedder = Embedder(host, settings.chain, asyncio.Semaphore(settings.embeds))
        job_queue = JobQueue(host.database, host.clock, host.services.worker_info.server)
        upkeep = IndexUpkeep(index, host.clock)
        reader = FileConverter(
            settings.read_memory, settings.read_timeout, settings.max_characters, asyncio.Semaphore(settings.jobs)
        )
        origins = Origins(host.database, host.files, reader, settings.chunk, settings.max_file_bytes)
        ingest = Ingest(store, collections, job_queue, embedder, index, upkeep, origins)
        runner = Runner(ingest, Mover(ingest, Moves(host.database, job_queue)), host, settings.jobs)
        reranker = Reranker(host, settings.rerank, settings.rerank_top, settings.rerank_timeout)
        order = (settings.words, settings.fusion, reranker, settings.closer)
        self.search = Search(store, collections, embedder, index, *order)
        self.rewriter = Rewriter(host, settings.rewrite)
        self.vector_stores = VectorStores.of(runner, self.search, self.rewriter, settings.chunk, settings.min_text)
        self.file_search = tool.FileSearch(
            self.vector_stores.searching, self.rewriter, settings.top, settings.budget, settings.prompt, self.fits
        )
        self.parts = BackgroundTasks(
            runner,
            upkeep,
            Repair(store, collections, index),
            self.vector_stores.expiring,
            PeriodicTasks(host.background),
        )
        host.register_caller_data(Holding(store, collections, index))
        host.files.extractor = FileTextExtractor(reader, settings.max_file_bytes)
        self.apis = (
            DocumentsApi(store, collections, runner, index, reader, settings.max_file_bytes),
            Lookup(collections, index, runner),
            Searches(self.search, host),
            self.vector_stores,
        )

    def routes(self) -> Iterable[Route]:
        for api in self.apis:
            yield from api.routes()

    async def __aenter__(self) -> Self:
        self.parts.start(self.host)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.parts.stop()

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        if (given := call.extra.get(tool.FIELD)) is not None:
            return await self.file_search.answer(call, call_next, given)
        wanted = asked(call.extra.get(FIELD, self.settings.always and isinstance(call.ask, Chat)))
        if wanted is None:
            return await call_next(call)
        if not isinstance(call.ask, Chat):
            raise BadCall("'rag' is for chats only.", param=FIELD, code="unsupported_parameter")
        place, question = prompt.asked_last(call.ask)
        if place is None or not question.strip():
            return (await call_next(call)).noting(rag="no question")
        call.progress("searching documents")
        question = await self.rewriter.question(call, call.ask, place, question)
        top = wanted.top or self.settings.top
        payer = Payer(call.caller, call.key)
        request = SearchRequest(payer, question, top, wanted.collections, wanted.filter, at=f"{FIELD}.")
        outcome = await self.search.run(request)
        hits = prompt.within([hit for hit in outcome.hits if self.fits(hit)], self.settings.budget)
        if not hits:
            return (await call_next(call)).noting(rag=prompt.fact(hits, outcome))
        text = prompt.written(hits, outcome, self.settings.prompt, call.ask.messages[place].text)
        reply = await call_next(call.but(ask=prompt.asked_with(call.ask, text, place)))
        citing = prompt.Citing(hits, outcome, self.host.requests.link)
        return await begun(reply.through(citing.stage).noting(rag=prompt.fact(hits, outcome)))

    def fits(self, hit: Hit) -> bool:
        return hit.cosine >= self.settings.min_similarity or hit.words >= self.settings.min_text


@dataclass(slots=True)
class BackgroundTasks:
    """The background tasks."""

    runner: Runner
    upkeep: IndexUpkeep
    repair: Repair
    expiring: Expiring
    periodic: PeriodicTasks
    tasks: tuple[asyncio.Task[object], ...] = ()
    repaired: bool = False

    def start(self, host: Host) -> None:
        begin = host.background.start
        self.tasks = (
            begin(self.runner.run(), "taking in documents"),
            begin(self.upkeep.run(), "tending the index of documents"),
        )
        if host.services.worker_info.index == 0:
            self.periodic.every(SWEEP, self.put_right, "comparing documents and their index")
            self.periodic.every(EVERY, self.expiring.tidy, "emptying old vector stores", calm=True)

    async def put_right(self) -> None:
        """Repair what a crash has left, once database and index are available; sweep removed tables every time."""
        if not self.repaired:
            if await self.repair.run():
                self.runner.nudge()
            self.repaired = True
        await self.repair.sweep()

    async def stop(self) -> None:
        await self.periodic.end()
        for task in self.tasks:
            task.cancel()
        for task in self.tasks:
            with suppress(asyncio.CancelledError):
                await task
        await self.runner.aclose()


def asked(given: JSON) -> Rag | None:
    """The options of a call; None if it does not use documents.  Raises BadCall."""
    if given is None or given is False:
        return None
    if given is True:
        return Rag()
    if type(given) is not dict:
        message = f"Invalid '{FIELD}': it is true, false or an object of collections, top and filter."
        raise BadCall(message, param=FIELD, code="invalid_type")
    return checked(Rag, given, FIELD)
