"""An estimate of what a call will use, before it is made."""

from __future__ import annotations

from collections.abc import Collection

from plugins.limits.plan import Need
from proxy.announcements import CallEnded
from proxy.asks import Chat, Embed
from proxy.estimates import LETTERS, letters
from proxy.host import Host
from proxy.types import Ask, Call


class Estimate:
    """answer: tokens to assume for an answer that the call does not limit."""

    def __init__(self, host: Host, answer: int) -> None:
        self.host = host
        self.answer = answer

    def of(self, call: Call, units: Collection[str]) -> Need:
        """units: what is counted for this call."""
        prompt = -(-letters(call.ask) // LETTERS)
        answer = self.answered(call.ask)
        return Need(prompt, prompt + answer, self.money(call, prompt, answer) if "money" in units else 0)

    def answered(self, ask: Ask) -> int:
        if isinstance(ask, Embed):
            return 0
        most = ask.options.get("max_tokens")
        each = most if isinstance(most, int) and most > 0 else self.answer
        return each * (ask.n if isinstance(ask, Chat) else max(ask.n, ask.best_of) * len(ask.prompts))

    def money(self, call: Call, prompt: int, answer: int) -> int:
        ended = CallEnded(
            call.id,
            self.host.clock.time(),
            call.caller,
            call.key,
            call.route,
            call.stream,
            call.model,
            self.host.models.named(call.model),
            prompt_tokens=prompt,
            completion_tokens=answer,
        )
        cost = self.host.price(ended)
        return (cost.amount or 0) if cost is not None else 0
