"""The request bodies and queries of the conversation endpoints, validated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from msgspec.structs import replace
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from plugins.conversations.conversation import checked_id
from plugins.conversations.messages import cleaned
from proxy.config import Strict
from proxy.errors import BadCall
from proxy.host import RequestReader
from proxy.types import JSON, Message
from proxy.wire import openai_messages
from proxy.wire.openai_messages import Limits

LIMITS: Final = Limits()
MOST: Final = 1000
"""Maximum number of messages added by one request."""
MOST_LETTERS: Final = 4 * 1024 * 1024
"""Maximum characters of them: they are added in one transaction, and SQLite allows one writer."""


def _without_nul(text: str) -> str:
    return text.replace("\0", "")


Clean = Annotated[str, AfterValidator(_without_nul)]
Title = Annotated[str, StringConstraints(max_length=200), AfterValidator(_without_nul)]
Name = Annotated[str, StringConstraints(max_length=600), AfterValidator(_without_nul)]
Id = Annotated[str, AfterValidator(checked_id)]
Pair = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[Annotated[str, StringConstraints(max_length=64)], Pair], Field(max_length=16)]
System = Annotated[str, StringConstraints(max_length=1_000_000), AfterValidator(_without_nul)]


class Create(Strict):
    id: Id | None = None
    title: Title | None = None
    model: Name | None = None
    system_prompt: System | None = None
    metadata: Metadata | None = None
    messages: Annotated[list[JSON], Field(max_length=MOST)] | None = None


class Change(Strict):
    """Only the given fields change."""

    title: Title | None = None
    model: Name | None = None
    system_prompt: System | None = None
    metadata: Metadata | None = None

    def columns(self) -> dict[str, Any]:
        names = {"title": "title", "model": "model", "system_prompt": "system"}
        return {column: getattr(self, name) or "" for name, column in names.items() if name in self.model_fields_set}


class Add(BaseModel):
    """One message in OpenAI's shape, or several as `messages`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    messages: Annotated[list[JSON], Field(min_length=1, max_length=MOST)] | None = None

    def read(self) -> list[Message]:
        alone = self.model_extra or {}
        if self.messages is None:
            return [message(alone, "")]
        if alone:
            name = next(iter(alone))
            message_ = f"'{name}' belongs in one of the 'messages'."
            raise BadCall(message_, param=name[:100], code="invalid_parameter_combination")
        return read_messages(self.messages)


class Generate(BaseModel):
    """The fields of a chat request without `messages`.  message: a new message, or just the text of a user's."""

    model_config = ConfigDict(extra="allow", frozen=True)

    message: JSON = None

    def new(self) -> list[Message]:
        if self.message is None:
            return []
        if isinstance(self.message, str):
            return [Message("user", self.message)]
        return [message(self.message, "message")]

    def body(self, model: str) -> Mapping[str, JSON]:
        """The body of a chat request, with a placeholder for the messages."""
        given = self.model_extra or {}
        for name in ("messages", "conversation"):
            if name in given:
                raise BadCall(
                    f"'{name}' cannot be sent here: it comes from the conversation.",
                    param=name,
                    code="unknown_parameter",
                )
        if given.get("store"):
            message_ = "'store' is not supported here: a conversation is always stored."
            raise BadCall(message_, param="store", code="unsupported_parameter")
        if not given.get("model") and not model:
            raise BadCall("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")
        return {"model": model, **given, "messages": [{"role": "user", "content": "-"}]}


class Fork(Strict):
    message: str | None = None
    """Id of the last message to copy; unset copies all."""
    id: Id | None = None
    title: Title | None = None


class Page(Strict):
    """Pagination.  after: the id after which the page begins."""

    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


class MessagePage(Page):
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    order: Literal["asc", "desc"] = "asc"


class Query(Strict):
    q: Annotated[str, StringConstraints(min_length=1, max_length=500, strip_whitespace=True)]
    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20

    @model_validator(mode="after")
    def _words(self) -> Query:
        if not any(letter.isalnum() for letter in self.q):
            raise ValueError("`q` contains no word")
        return self


class Format(Strict):
    format: Literal["json", "markdown"] = "json"


def read_messages(given: list[JSON], at: str = "messages") -> list[Message]:
    return [message(one, f"{at}[{index}]") for index, one in enumerate(given)]


def message(given: JSON, at: str) -> Message:
    """A message from JSON.  Raises BadCall naming the field.  at: its path in the body, "" for the body itself."""
    try:
        return openai_messages.message(given, at, LIMITS)
    except BadCall as error:
        param = (error.param or "").removeprefix(".") or None
        raise BadCall(str(error).replace("'.", "'"), param=param, code=error.code) from None


async def pictured(requests: RequestReader, messages: Sequence[Message], at: str = "messages") -> list[Message]:
    """The messages, cleaned, with links to images replaced by the images.  Raises BadCall.

    at: `messages`, or the field of a single message, "" for the body itself.
    """
    alone = f"{at}.content".removeprefix(".")
    check_letters(messages, at or alone)
    links = {
        one.url: f"{at}[{index}].content" if at == "messages" else alone
        for index, said in enumerate(messages)
        for one in said.images
        if one.url
    }
    found = await requests.pictures(links, at or alone)
    made = (replace(said, images=tuple(found.get(one.url, one) for one in said.images)) for said in messages)
    return [cleaned(one) for one in made]


def check_letters(messages: Iterable[Message], at: str) -> None:
    """Raises BadCall if the messages have too many characters for one request."""
    if sum(len(one.text) for one in messages) > MOST_LETTERS:
        message = f"Invalid '{at}': more than {MOST_LETTERS} characters in one request; use several requests."
        raise BadCall(message, param=at, code="input_too_large")
