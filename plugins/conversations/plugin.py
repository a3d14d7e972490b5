"""Stored conversations: a call that names one gets its history, and its exchange is appended to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, Self

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from plugins.conversations.api import Api
from plugins.conversations.conversation import FIELD, HEADER, TOO_LONG, Conversation, checked_id, full
from plugins.conversations.memory import Memory, NewPart, Summarise, Window, headed
from plugins.conversations.messages import StoredMessage, cleaned, letters
from plugins.conversations.openai import OpenAI
from plugins.conversations.output import Output
from plugins.conversations.recording import Recording
from plugins.conversations.referred import items_of
from plugins.conversations.resent import answered, new_of, split_system
from plugins.conversations.retention import EVERY, Retention
from plugins.conversations.store import Cut, Limits, Store
from plugins.conversations.tables import FEATURE
from plugins.conversations.turns import Turn, Turns, TurnTaker, keep_renewing
from plugins.conversations.writing import Writing
from proxy.asks import pictured_at
from proxy.config import Strict
from proxy.errors import BadCall, Busy, ProxyError
from proxy.estimates import letters_beside
from proxy.host import Host, PeriodicTasks
from proxy.types import Call, Chat, Handler, Message, Reply, Route

FACT: Final = "conversation"
PREVIOUS: Final = "previous_response_id"
OWN_SYSTEM: Final = "own_system"
"""The tag with the caller's own system message, if an experiment has replaced it."""
TRIES: Final = 3
"""Maximum number of times a prompt is shortened after the model refused it: token counts are estimates."""
PATIENCE: Final = 5.0
"""Seconds to wait at shutdown for the last exchanges to be stored."""


class Conversations:
    """Remembers conversations: a call that names one sends only its new messages, and the answer is added to it.

    Goes before plugins that add something to a single call, such as documents, and before those that cache answers.
    """

    place = "remembers"
    fields = frozenset({FIELD})
    headers = frozenset({HEADER})
    tables = FEATURE
    asks = frozenset({"chat"})

    class Settings(Strict):
        unknown: Literal["create", "refuse"] = "create"
        """What happens to a call that names a conversation that its caller does not have: it begins one, or is a
        404."""
        wait: PositiveFloat = 30.0
        """Seconds for which a call waits for another one of the same conversation to end; then it is a 409."""
        waiting: NonNegativeInt = 100
        """Calls that may wait for one conversation in each process; a further one is a 409 at once."""
        cut: Literal["keep", "drop"] = "keep"
        """Whether an exchange is stored whose answer was cut short, or whose client left; it is then marked as such."""
        window: Window = Window()
        """How much of a conversation a model is given."""
        summarise: Summarise | None = None
        """Has what no longer fits summarised by a model; if unset, it is left out."""
        title_model: str | None = None
        """A model that gives new conversations their titles, through the chain `internal`; if unset, the beginning of
        the first message is used."""
        keep_days: PositiveInt | None = None
        """Days after which a conversation that was not continued is deleted; if unset, never."""
        max_conversations: PositiveInt = 10_000
        """Conversations that a caller may have."""
        max_messages: PositiveInt = 10_000
        """Messages that a conversation may have."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings = settings
        self.host = host
        self.store = Store(host, Limits(settings.max_conversations, settings.max_messages))
        self.turns = host.process_state("conversations turns", Turns)
        self.taking = TurnTaker(self.store, self.turns, settings.wait, settings.waiting, settings.unknown == "create")
        self.writing = Writing(host)
        self.memory = Memory(self.store, self.writing, settings.window, settings.summarise)
        self.retention = Retention(self.store, settings.keep_days)
        self.periodic = PeriodicTasks(host.background)
        host.register_caller_data(self.retention)
        host.register_item_finder(partial(items_of, self.store))
        host.record_fact(FIELD)

    async def __call__(self, call: Call, call_next: Handler) -> Reply:
        id = named(call)
        if id is None:
            return await call_next(call)
        if not isinstance(call.ask, Chat):
            raise BadCall("Conversations are for chats only.", param=FIELD, code="conversation_not_for_this")
        if call.ask.n > 1:
            raise BadCall(
                "A conversation has one answer to each question: 'n' must be 1.", param="n", code="invalid_value"
            )
        if call.receipt is not None and call.receipt.head.get(PREVIOUS):
            message = f"'{PREVIOUS}' and a conversation both supply the earlier messages; send only one of them."
            raise BadCall(message, param=PREVIOUS, code="invalid_parameter_combination")
        turn = await self.taking.turn(call.caller, id)
        recording = Recording(self.store, turn, call, self.settings.cut == "keep", output=Output.of(call))
        if self.settings.title_model is not None:
            recording.entitle = partial(self.entitle, call.but(model=self.settings.title_model, models=None), turn.talk)
        try:
            told, reply = await self.asked(turn, call, call.ask, call_next)
            recording.new, recording.system = told.new, None if is_once(call) else told.system
            recording.sent, recording.cut = told.letters, told.cut
        except BaseException as error:
            await recording.failed()
            if isinstance(error, ProxyError):
                error.facts[FACT] = id
            raise
        recording.facts = dict(reply.facts)
        kept = reply.through(recording.heard).on_close(recording.closed)
        return kept.noting(**{FACT: id, "memory": told.left_out})

    async def asked(self, turn: Turn, call: Call, ask: Chat, call_next: Handler) -> tuple[Prompt, Reply]:
        """The prompt and the reply; a prompt that the model refuses as too long is shortened."""
        told = await self.prompt(turn, call, ask)
        for _ in range(TRIES):
            try:
                return told, await call_next(call.but(ask=told.ask, tags={**call.tags, FACT: turn.talk.id}))
            except BadCall as error:
                if error.code != TOO_LONG:
                    raise blamed(error, ask) from None
                less = await self.prompt(turn, call, ask, told.letters)
                if less.letters >= told.letters:
                    raise
                told = less
        return told, await call_next(call.but(ask=told.ask, tags={**call.tags, FACT: turn.talk.id}))

    async def prompt(self, turn: Turn, call: Call, ask: Chat, below: int | None = None) -> Prompt:
        """The prompt: system prompt, history and new messages.  Raises BadCall.

        below: characters that it must have fewer than, if a longer one was refused.
        """
        system, turns = split_system([cleaned(one) for one in ask.messages])
        async with self.store.database.reading() as connection:
            stored = await self.store.turns(connection, turn.talk, 0 if answered(turns) else turn.talk.first)
        lead, earlier = split_system([one.message for one in stored])
        new = new_of(turns, earlier)
        # A system prompt that is stored as the first messages is not stored or sent a second time.
        brought, system = (None if one == lead else one for one in (brought_by(call, system), system))
        if not new and (not stored or stored[-1].message.role == "assistant"):
            message = "There is nothing new to answer: send a message that the conversation does not have yet."
            raise BadCall(message, param="messages", code="nothing_to_answer")
        if turn.talk.messages + len(new) >= self.settings.max_messages:
            raise full(f"A conversation may have {self.settings.max_messages} messages; go on in a fork or a new one.")
        outset = turn.talk.system if system is None else both(turn.talk.system, system) if is_once(call) else system
        kept = await self.memory.kept(call, turn.talk, stored, NewPart(new, outset, below))
        return Prompt(headed(ask, outset, kept, new), brought, new, kept.fact, kept.cut)

    def entitle(self, call: Call, talk: Conversation, stored_messages: Sequence[StoredMessage]) -> None:
        with suppress(Busy):  # then the beginning of the first message remains the title
            self.host.background.start(self.entitled(call, talk, stored_messages), "giving a conversation its title")

    async def entitled(self, call: Call, talk: Conversation, stored_messages: Sequence[StoredMessage]) -> None:
        title = await self.writing.title(call, stored_messages)
        async with self.store.database.writing() as connection:
            await self.store.name(connection, talk, title)

    async def __aenter__(self) -> Self:
        start = self.host.background.start
        if self.turns.renewing is None:  # one task serves all pipelines of later reloads, too
            renews = keep_renewing(self.turns, self.store, self.host.clock)
            self.turns.renewing = start(renews, "prolonging turns in conversations")
        self.periodic.every(EVERY, self.retention.tidy, "deleting old conversations", calm=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.periodic.end()
        await self.turns.written(PATIENCE)

    def routes(self) -> Iterable[Route]:
        yield from Api(self.store, self.taking, self.host).routes()
        yield from OpenAI(self.store, self.taking, self.host).routes()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt.  system: the caller's system prompt, to be stored.  left_out: the header about messages not sent."""

    ask: Chat
    system: str | None
    new: list[Message]
    left_out: str
    cut: Cut | None

    @property
    def letters(self) -> int:
        return letters(self.ask.messages) + letters_beside(self.ask)


def brought_by(call: Call, system: str | None) -> str | None:
    """The caller's own system prompt, even if an experiment has replaced it for this call."""
    own = call.tags.get(OWN_SYSTEM)
    return system if own is None else own.replace("\0", "") or None


def blamed(error: BadCall, ask: Chat) -> BadCall:
    """An error about images, naming the field in the request instead of the index in the whole prompt."""
    if error.code != "model_not_capable" or not (error.param or "").startswith("messages"):
        return error
    at = pictured_at(ask.messages)
    error = error.copied()
    if at is None:
        error.args = (f"{str(error).rstrip('.')}, and there are some in the conversation.",)
    error.param = at or FIELD
    return error


def both(one: str, other: str) -> str:
    return "\n\n".join(filter(None, (one, other)))


def is_once(call: Call) -> bool:
    """Whether the system prompt applies to this call only, as `instructions` do in OpenAI's Responses API."""
    return call.receipt is not None and call.receipt.head["object"] == "response"


def named(call: Call) -> str | None:
    """The id of the conversation that a call names; None if it names none.  Raises BadCall."""
    if not call.extra and not call.headers:
        return None
    given = call.extra.get(FIELD)
    if isinstance(given, dict) and set(given) == {"id"}:
        given = given["id"]
    header = call.headers.get(HEADER)
    if given is None:
        given = header
    if given is None:
        return None
    if type(given) is not str:
        message = f"Invalid type for '{FIELD}': expected the id of a conversation, or an object with its 'id'."
        raise BadCall(message, param=FIELD, code="invalid_type")
    if header is not None and header != given:
        message = f"'{FIELD}' and the header '{HEADER}' name two conversations."
        raise BadCall(message, param=FIELD, code="invalid_value")
    try:
        return checked_id(given)
    except ValueError as error:
        raise BadCall(f"Invalid '{FIELD}': {error}.", param=FIELD, code="invalid_value") from None
