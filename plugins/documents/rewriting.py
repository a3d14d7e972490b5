"""Rewrites a question that depends on its conversation, so that it can be searched for on its own."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from proxy.errors import ProxyError
from proxy.host import Host
from proxy.streams import collect
from proxy.types import Call, Caller, Chat, Message
from proxy.wire.ids import new_id

log = logging.getLogger(__name__)
TURNS: Final = 6
"""Messages before the question that the model is shown."""
LONGEST: Final = 1000
"""Maximum characters of each message, and of the rewritten question."""
ASKED: Final = (
    "Write the last question of this conversation so that somebody who has not read the rest understands it: put names "
    "in the place of words such as 'it' or 'there'. Do not answer it. Write the question only, in its own language."
)

ALONE: Final = (
    "Write this question as a short search for documents that may answer it: only the words that such a document has. "
    "Do not answer it. Write the search only, in the question's language."
)


@dataclass(frozen=True, slots=True)
class Rewriter:
    """model: rewrites questions; None turns rewriting off."""

    host: Host
    model: str | None

    async def question(self, call: Call, chat: Chat, place: int, question: str) -> str:
        """The question to search for; the original one if the model fails."""
        talk = [one for one in chat.messages[:place] if one.role in ("user", "assistant") and one.text][-TURNS:]
        if self.model is None or not talk:
            return question
        shown = "\n".join(f"{one.role}: {one.text[:LONGEST]}" for one in (*talk, Message("user", question)))
        return await self.written(ASKED, shown, question, call.caller, call.key)

    async def alone(self, caller: Caller, question: str) -> str:
        """A question without conversation, rewritten as search terms; the original one if the model fails."""
        if self.model is None:
            return question
        return await self.written(ALONE, question, question, caller.name, caller.key)

    async def written(self, asked: str, shown: str, question: str, caller: str, key: str) -> str:
        options = {"temperature": 0, "max_tokens": 300}
        ask = Chat((Message("system", asked), Message("user", shown)), options=options, think=False, question=question)
        own = Call(new_id("rag_"), "internal", self.model or "", ask, caller=caller, key=key)
        try:
            answer = await collect(await self.host.send(own))
        except ProxyError as error:
            log.warning("a question could not be rewritten, and is searched for as it is: %s", error)
            return question
        return answer.choice(0).text.strip()[:LONGEST] or question
