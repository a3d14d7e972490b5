"""OpenAI's tool `file_search` for responses: the server always searches before it calls the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from plugins.documents import prompt
from plugins.documents.payer import Payer
from plugins.documents.rewriting import Rewriter
from plugins.documents.scores import Hit
from plugins.documents.search import Outcome
from plugins.documents.vectorstores.forms import Tool
from plugins.documents.vectorstores.searching import Result, Searching, StoreSearchRequest, checked
from proxy import forms
from proxy.errors import BadCall
from proxy.streams import begun
from proxy.types import JSON, Call, Chat, Events, Handler, Reply, Searched

FIELD: Final = "file_search"
RESPONSE: Final = "response"


class Citing(prompt.Citing):
    """Reports the search first, and cites files."""

    def __init__(self, told: Searched, results: Sequence[Result], outcome: Outcome) -> None:
        super().__init__([one.hit for one in results], outcome)
        self.told = told
        for passage, one in zip(self.passages, results, strict=True):
            passage |= {"file_id": one.file, "filename": one.name}

    async def stage(self, source: Events) -> Events:
        yield self.told
        async for event in super().stage(source):
            yield event

    def annotation(self, passage: dict[str, JSON], start: int, end: int) -> dict[str, JSON]:
        cited = {"file_id": passage["file_id"], "filename": passage["filename"]}
        return {"type": "file_citation", "index": end, **cited}


@dataclass(frozen=True, slots=True)
class FileSearch:
    """top, budget, template: as for `rag`.  fits: whether a passage is good enough for the prompt."""

    searching: Searching
    rewriter: Rewriter
    top: int
    budget: int
    template: str
    fits: Callable[[Hit], bool]

    async def answer(self, call: Call, call_next: Handler, given: JSON) -> Reply:
        """Search, and answer with the passages.  Raises BadCall or NotFound naming the wrong field of the tool."""
        if not isinstance(call.ask, Chat) or call.receipt is None or call.receipt.head.get("object") != RESPONSE:
            raise BadCall(f"'{FIELD}' is a tool of POST /v1/responses.", param=FIELD, code="unsupported_parameter")
        tool, at = tool_of(given)
        filters = checked(tool.filters, f"{at}.filters")
        stores = await self.searching.stores(call.caller, tool.vector_store_ids, f"{at}.vector_store_ids")
        place, question = prompt.asked_last(call.ask)
        if place is None or not question.strip():
            return (await call_next(call)).noting(rag="no question")
        call.progress("searching files")
        query = await self.rewriter.question(call, call.ask, place, question)
        top = tool.max_num_results or self.top
        wanted = StoreSearchRequest(
            Payer(call.caller, call.key), stores, [query], top, filters, tool.ranking_options, merge=True
        )
        results = self.chosen(await self.searching.run(wanted))
        told = Searched((query,), tuple(map(shown, results)) if tool.results else None)
        outcome = Outcome(items={one.item.id: one.item for one in results})
        fact = "nothing found"
        if results:
            fact = prompt.fact([one.hit for one in results], outcome)
            text = self.written(results, outcome, call.ask.messages[place].text)
            call = call.but(ask=prompt.asked_with(call.ask, text, place))
        reply = await call_next(call)
        return await begun(reply.through(Citing(told, results, outcome).stage).noting(rag=fact))

    def written(self, results: Sequence[Result], outcome: Outcome, question: str) -> str:
        return prompt.written([one.hit for one in results], outcome, self.template, question)

    def chosen(self, found: Sequence[Result]) -> list[Result]:
        """The results that match well enough and fit into the prompt's budget."""
        fitting = [one for one in found if self.fits(one.hit)]
        return fitting[: len(prompt.within([one.hit for one in fitting], self.budget))]


def tool_of(given: JSON) -> tuple[Tool, str]:
    """The tool, and its path in the request.  Raises BadCall."""
    told = dict(given) if isinstance(given, Mapping) else {}
    at = str(told.pop("at", FIELD))
    return forms.checked(Tool, told, at), at


def shown(one: Result) -> dict[str, JSON]:
    told = {"file_id": one.file, "filename": one.name, "score": one.score, "attributes": dict(one.attributes)}
    return {**told, "text": one.hit.content}
