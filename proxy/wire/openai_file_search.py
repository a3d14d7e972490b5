"""OpenAI's tool `file_search`, in requests for a response and in its answers.

Source: OpenAI's API reference, "Responses", and its guide "File search".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from proxy.errors import BadCall
from proxy.types import JSON, Searched, ToolChoice
from proxy.wire import read
from proxy.wire.openai_items import Item
from proxy.wire.openai_response_parts import Frames

KIND: Final = "file_search"
"""The tool's type, and the name of the field by which a plugin declares that it provides the tool."""
CALL: Final = "file_search_call"
RESULTS: Final = "file_search_call.results"
HOSTED: Final = ("vector_store_ids", "filters", "max_num_results", "ranking_options")
STATUSES: Final = ("completed", "in_progress", "searching", "incomplete", "failed")
TOLD: Final = ("attributes", "file_id", "filename", "score", "text")


@dataclass(slots=True)
class Choosing:
    """What a request says about the tool.

    tool: the tool as the plugin reads it, with its path in the request as `at`; None if the request has none.
    chosen: whether `tool_choice` selects it; None if that names no tools.  place: the field that does so.
    included: whether the answer is to contain the results.
    """

    tool: dict[str, JSON] | None = None
    chosen: bool | None = None
    place: str = ""
    included: bool = False

    def add(self, given: Item, at: str, theirs: Iterable[str], deepest: int) -> Item:
        """Record the tool, and give it as the response repeats it.  Raises BadCall."""
        if KIND not in theirs:
            message = f"'{KIND}' is served by the plugin 'documents', which is not in the chain 'chat' of this server."
            raise BadCall(message, param=at, code="plugin_missing")
        if self.tool is not None:
            message = f"Invalid '{at}': one tool '{KIND}' may name several vector stores."
            raise BadCall(message, param=at, code="invalid_value")
        for name in given:
            if name != "type" and name not in HOSTED:
                message = f"Unknown parameter: '{at}.{name[:80]}'."
                raise BadCall(message, param=f"{at}.{name[:80]}", code="unknown_parameter")
        read.needed(given, "vector_store_ids", f"{at}.vector_store_ids")
        read.not_deep(given, at, deepest)
        told = {name: given.get(name) for name in HOSTED if given.get(name) is not None}
        self.tool = {**told, "at": at}
        return {"type": KIND, **told}

    def settled(self, choice: ToolChoice, extra: dict[str, JSON], notes: dict[str, str]) -> ToolChoice:
        """Put the tool into `extra` for the plugin, and give the tool choice that applies to the functions.

        Files are always searched unless the choice excludes it, so the search satisfies a choice that requires a tool.
        Raises BadCall.
        """
        if self.chosen and self.tool is None:
            message = f"Invalid '{self.place}': there is no tool '{KIND}' in 'tools'."
            raise BadCall(message, param=self.place, code="invalid_value")
        if self.included and self.tool is None:
            notes[f"include.{RESULTS}"] = "ignored"
        if self.tool is None or self.chosen is False or (choice.mode == "none" and not self.chosen):
            return choice
        extra[KIND] = {**self.tool, "results": self.included}
        return ToolChoice("auto", choice.names) if choice.mode == "required" else choice


# --- in the answer --------------------------------------------------------------------------------------


def search_item(id: str, event: Searched) -> Item:
    results = None if event.results is None else [dict(one) for one in event.results]
    return {"id": id, "type": CALL, "status": "completed", "queries": list(event.queries), "results": results}


def called(frames: Frames, id: str, index: int, event: Searched) -> tuple[Item, bytes]:
    """The item of a search that has already ended, and all of its events."""
    item = search_item(id, event)
    said = frames.added(index, {**item, "queries": [], "results": None})
    for stage in ("in_progress", "searching", "completed"):
        said += frames.event(f"response.{CALL}.{stage}", item_id=id, output_index=index)
    return item, said + frames.done(index, item)


def cited(given: Iterable[Mapping[str, JSON]]) -> list[Item]:
    """Annotations in the form of responses, whose fields are beside the type and not in an object as in chats."""
    return [{"type": one["type"], **one[one["type"]]} if one["type"] in one else dict(one) for one in given]


# --- in a request's items -------------------------------------------------------------------------------


def item(given: Item, at: str) -> Item:
    """The fields of an earlier answer's search, which is listed but not shown to the model again."""
    queries = [
        read.text(one, f"{at}.queries[{index}]")
        for index, one in enumerate(read.array(given.get("queries") or [], f"{at}.queries"))
    ]
    results = given.get("results")
    if results is not None:
        listed = enumerate(read.array(results, f"{at}.results"))
        results = [_result(one, f"{at}.results[{index}]") for index, one in listed]
    return {"queries": queries, "results": results}


def _result(value: JSON, at: str) -> Item:
    given = read.mapping(value, at)
    read.not_deep(given, at, 3)
    return {name: given[name] for name in TOLD if name in given}
