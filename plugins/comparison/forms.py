"""The request bodies and queries of the comparison endpoints, validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, Self

from msgspec.structs import replace
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from plugins.comparison.results import LETTERS, WORDS, Compared, clean
from proxy.config import Strict
from proxy.errors import BadCall
from proxy.types import JSON, Chat, Message

MOST: Final = len(LETTERS)
"""Maximum number of models in one comparison."""
ALONE: Final = ("tools", "functions", "tool_choice", "function_call", "parallel_tool_calls", "logprobs", "top_logprobs")
"""Chat fields that are refused, because their answers cannot be compared as text."""
VOTES: Final[Mapping[str, int]] = {word: vote for vote, word in WORDS.items()}
WORTH: Final = {"up": 1, "down": -1, "none": 0}


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    return text


def _distinct(models: list[str]) -> list[str]:
    if len(set(models)) < len(models):
        raise ValueError("it contains a model twice")
    return models


Name = Annotated[str, StringConstraints(min_length=1, max_length=600), AfterValidator(clean), AfterValidator(_filled)]
Text = Annotated[str, AfterValidator(_filled)]
Models = Annotated[list[Name], Field(min_length=2, max_length=MOST), AfterValidator(_distinct)]
Criteria = Annotated[str, StringConstraints(max_length=4000), AfterValidator(clean)]


class Judge(Strict):
    """A model that decides which of two answers is better, and by which criteria."""

    model: Name
    criteria: Criteria = ""


class Compare(BaseModel):
    """A question to several models; further fields are those of a chat request."""

    model_config = ConfigDict(extra="allow", frozen=True)

    models: Models
    prompt: Text | None = None
    system: str | None = None
    stream: bool = False
    blind: bool = False
    judge: Judge | None = None

    def body(self) -> dict[str, JSON]:
        """The body of a chat request to the first model.  Raises BadCall."""
        given: dict[str, JSON] = dict(self.model_extra or {})
        for name in ALONE:
            if given.get(name) is not None:
                message = f"'{name}' is not supported here: answers are compared as text."
                raise BadCall(message, param=name, code="unsupported_parameter")
        if given.get("conversation") is not None:
            message = "'conversation' is not supported here: send the earlier messages in 'messages'."
            raise BadCall(message, param="conversation", code="unsupported_parameter")
        if given.get("n") not in (None, 1):
            raise BadCall("'n' must be 1: every model answers once.", param="n", code="invalid_value")
        if given.get("model") is not None:
            raise BadCall("Name the models in 'models'.", param="model", code="unknown_parameter")
        messages = self.messages(given.get("messages"))
        return {**given, "model": self.models[0], "stream": self.stream, "messages": messages}

    def messages(self, given: JSON) -> JSON:
        if self.prompt is not None:
            if given is not None:
                message = "'prompt' and 'messages' both contain the question; send only one of them."
                raise BadCall(message, param="prompt", code="invalid_parameter_combination")
            given = [{"role": "user", "content": self.prompt}]
        return [] if given is None else given

    def led(self, chat: Chat) -> Chat:
        """The chat with the system message in front; added late, since errors refer to `messages` by index."""
        return replace(chat, messages=(Message("system", self.system), *chat.messages)) if self.system else chat

    def nothing(self, error: BadCall) -> BadCall:
        """The error to report if the request has neither `prompt` nor `messages`; otherwise the given one."""
        if error.param != "messages" or self.prompt is not None or (self.model_extra or {}).get("messages") is not None:
            return error
        message = "Missing required parameter: 'prompt', or 'messages'."
        return BadCall(message, param="prompt", code="missing_required_parameter")


def asked_of(chat: Chat) -> dict[str, JSON]:
    """The question as it is stored.  Of images only the number is kept."""
    messages = [
        {"role": one.role, "content": clean(one.text), **({"images": len(one.images)} if one.images else {})}
        for one in chat.messages
    ]
    return {"messages": messages, "options": dict(chat.options)}


class Rate(Strict):
    """A vote for the winner, or a rating of one answer."""

    winner: str | None = None
    model: str | None = None
    rating: Literal["up", "down", "none"] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.winner is None) == (self.model is None and self.rating is None):
            raise ValueError("send `winner`, or `model` and its `rating`")
        if (self.model is None) != (self.rating is None):
            raise ValueError("`model` and `rating` belong together")
        return self

    def vote(self, compared: Compared) -> int:
        """The place that won, or TIE or NONE_GOOD.  Raises BadCall."""
        if (word := VOTES.get(self.winner or "")) is not None:
            return word
        return answered_by(compared, self.winner or "", "winner", ("tie", "none_good"))


def answered_by(compared: Compared, name: str, param: str, besides: Sequence[str] = ()) -> int:
    """The place of the named answer.  Raises BadCall, also if that model failed to answer."""
    place = place_of(compared, name, param, besides)
    if not compared.results[place].success:
        raise BadCall(f"Invalid '{param}': this model did not answer.", param=param, code="invalid_value")
    return place


def place_of(compared: Compared, name: str, param: str, besides: Sequence[str]) -> int:
    """The place of the result shown under this name or, unless models are hidden, of this model.  Raises BadCall."""
    names = compared.names()
    if name in names:
        return names.index(name)
    models = [one.model for one in compared.results]
    if name in models and not compared.hidden:
        return models.index(name)
    choices = ", ".join(f"'{one}'" for one in (*names, *besides))
    message = f"Invalid value for '{param}': '{name[:80]}'. Supported values are: {choices}."
    raise BadCall(message, param=param, code="invalid_value")


class Page(Strict):
    """Pagination.  after: the id after which the page begins."""

    after: Annotated[str, Field(max_length=64)] | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


class Figures(Strict):
    """days: periods of 24 hours.  user: whose comparisons; admins may name anybody, and otherwise see all."""

    days: Annotated[int, Field(ge=1, le=3660)] = 90
    user: str | None = None


class Ranking(Figures):
    by: Literal["votes", "judge", "all"] = "votes"
