"""Builds calls to the chain `chat` for plugins' own endpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from aiohttp import web

from proxy.config import Config
from proxy.edge.body import check_notes
from proxy.edge.calls import ChainInputs, call_of
from proxy.edge.exchange import exchange_of
from proxy.edge.images import Images
from proxy.host import Models
from proxy.types import JSON, Call, Caller
from proxy.wire.openai_answer import ChatStyle
from proxy.wire.openai_chat import read_chat
from proxy.wire.openai_messages import Limits


def admitted_later(call: Call, caller: Caller) -> None:
    """Admits every call: the plugin that sends it checks the caller's permissions."""


@dataclass(frozen=True, slots=True)
class Chats:
    """own: gives for each chain what its plugins declared, once these are built; see `Own`."""

    config: Config
    images: Images
    models: Models
    own: Callable[[], Mapping[str, ChainInputs]]

    async def call(self, request: web.BaseRequest, body: Mapping[str, JSON]) -> Call:
        """The call that a body describes.  Permissions are not checked yet, because the plugin may still change it.

        Raises BadCall, which names the field, and Denied if linked images would be fetched for a forbidden model.
        """
        own = replace(self.own().get("chat", ChainInputs(admitted_later, self.config)), admit=admitted_later)
        bounds = self.config.requests
        limits = Limits(bounds.max_choices, bounds.max_depth, bounds.max_image_bytes, bounds.max_inputs)
        asked = read_chat(dict(body), limits, own.fields, own.brings)
        check_notes(asked.notes, self.config.params)
        exchange, chat = exchange_of(request), asked.chat()
        exchange.style = partial(ChatStyle, include_usage=asked.include_usage, legacy_functions=asked.legacy_functions)
        if asked.notes:
            exchange.headers["x-gemmapy-params"] = exchange.noted(asked.notes)
        call = call_of(request, "chat", asked, chat, asked.stream, own)
        if self.images.linked(chat):
            self.models.check(call)  # before anything is fetched for a caller without permission
            call = call.but(ask=await self.images.fetched(chat))
        return call
