"""A template that can be rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from msgspec.structs import replace

from plugins.templates import text, variables
from plugins.templates.document import Document
from plugins.templates.shaped import holes, shaped
from plugins.templates.text import Nodes, Value
from proxy.errors import BadCall
from proxy.types import JSON, Chat, Format, Message
from proxy.wire.openai_fields import SAMPLING
from proxy.wire.schema_weight import Weight

INVALID: Final = "invalid_template_variables"


@dataclass(frozen=True)
class Template:
    """id, owner: of a caller's own template, else ""."""

    document: Document
    id: str = ""
    owner: str = ""

    @property
    def label(self) -> str:
        return f"{self.document.name}@{self.document.version}"

    @cached_property
    def as_json(self) -> Mapping[str, JSON]:
        return self.document.as_json()

    @cached_property
    def is_shaped(self) -> bool:
        """Whether the schema depends on variables."""
        return any(True for _ in holes(self.document.answer_schema))

    @cached_property
    def parsed(self) -> tuple[Nodes, ...]:
        return tuple(text.parse(turn.content) for turn in self.document.messages)

    @cached_property
    def options(self) -> Mapping[str, JSON]:
        return {name: SAMPLING[name](value, name) for name, value in self.document.parameters.items()}

    def format(self, values: Mapping[str, Value]) -> Format | None:
        """The format of the answer.  Raises BadCall if the values make the schema too large."""
        schema = self.document.answer_schema
        if schema is None:
            return None
        if self.is_shaped:
            schema = shaped(schema, values)
            Weight(schema, "template.variables")
        return Format(schema)

    def messages(self, given: Mapping[str, JSON], most: int) -> tuple[Message, ...]:
        """The rendered messages.  Raises BadCall."""
        return self.said(self.filled(given), most)

    def filled(self, given: Mapping[str, JSON]) -> Mapping[str, Value]:
        """Every variable's value.  Raises BadCall with all problems of the given ones."""
        values, problems = variables.fill(self.document.variables, given)
        if problems:
            message = f"The template '{self.label}' cannot be filled: {variables.joined(problems)}."
            raise BadCall(message, param="template.variables", code=INVALID)
        return values

    def said(self, values: Mapping[str, Value], most: int) -> tuple[Message, ...]:
        """The messages with these values; empty ones are left out.

        most: maximum characters in total.  Raises BadCall.
        """
        made, page = [], text.Page(most)
        for turn, nodes in zip(self.document.messages, self.parsed, strict=True):
            try:
                said = text.render(nodes, values, page)
            except text.TooLong:
                message = (
                    f"The template '{self.label}' would become longer than {most} characters, or have more than "
                    f"{text.STEPS} pieces."
                )
                raise BadCall(message, param="template.variables", code="template_too_long") from None
            if said.strip():
                made.append(Message(turn.role, said.rstrip("\n")))
        return tuple(made)

    def asked(self, chat: Chat, given: Mapping[str, JSON], most: int) -> Chat:
        """The chat with the template's messages before the caller's; all instructions come first.  Raises BadCall."""
        wanted = self.document.input
        own, pictures = chat.messages, None
        if wanted is not None and given.get(wanted) is None:
            first = next((index for index, one in enumerate(own) if one.role == "user"), None)
            if first is not None:
                given, pictures = {**given, wanted: own[first].text}, own[first]
                own = (*own[:first], *own[first + 1 :])
        values = self.filled(given)
        said = self.said(values, most)
        if pictures is not None and pictures.images:
            said = with_images(said, pictures)
        if not said and not own:
            message = f"The template '{self.label}' is empty with these variables, and there are no messages."
            raise BadCall(message, param="template.variables", code=INVALID)
        return replace(
            chat,
            messages=joined(said, own, led(chat.messages)),
            options={**self.options, **chat.options},
            format=chat.format or self.format(values),
            question=chat.question or question_of(chat.messages) or filled_in(given, wanted) or question_of(said),
        )


def joined(said: tuple[Message, ...], own: tuple[Message, ...], mine: int) -> tuple[Message, ...]:
    """mine: how many of the caller's messages are instructions.  They follow the template's instructions: after its
    question they would become part of the conversation, which models obey less and which is stored."""
    outset = led(said)
    return (*said[:outset], *own[:mine], *said[outset:], *own[mine:])


def led(messages: tuple[Message, ...]) -> int:
    """The number of system messages at the beginning."""
    return next((index for index, one in enumerate(messages) if one.role != "system"), len(messages))


def with_images(said: tuple[Message, ...], given: Message) -> tuple[Message, ...]:
    """Images of a message whose text became a variable are attached to the template's last user message."""
    last = max((index for index, one in enumerate(said) if one.role == "user"), default=None)
    if last is None:
        return (*said, replace(given, text=""))
    return (*said[:last], replace(said[last], images=given.images), *said[last + 1 :])


def filled_in(given: Mapping[str, JSON], wanted: str | None) -> str:
    """The value that the caller gave for the input variable."""
    found = None if wanted is None else given.get(wanted)
    return found if isinstance(found, str) else ""


def question_of(said: tuple[Message, ...]) -> str:
    return next((one.text for one in reversed(said) if one.role == "user"), "")
