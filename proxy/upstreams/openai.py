"""Any OpenAI-compatible server as a handler: vLLM, llama.cpp, OpenAI itself, another GemmaPy Proxy."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Collection, Mapping
from functools import partial

from proxy.config import Upstream
from proxy.errors import ProxyError
from proxy.host import Services
from proxy.models import ModelInfo
from proxy.streams import begun, replay
from proxy.types import JSON, Call, Chat, Complete, Embed, Events, Finish, Reply, Stage, Usage, Vectors
from proxy.upstreams import repair
from proxy.upstreams.common import in_batches, is_empty, notes_text, planned, strict_refusal
from proxy.upstreams.host_client import HostClient, HostKind
from proxy.upstreams.http1 import Connection, Origin
from proxy.upstreams.model_list import ModelList
from proxy.upstreams.ollama import origin_of
from proxy.wire import openai_bodies, openai_chunks, openai_models, openai_refusals, sse
from proxy.wire.openai_bodies import Plan
from proxy.wire.openai_chunks import AnswerReader

KIND = HostKind("The upstream", "an `openai` URL is all that stands before it, which often ends in /v1")


class OpenAI:
    """strict: refuse parameters that would be emulated or dropped."""

    def __init__(self, url: str, settings: Upstream, services: Services, strict: bool = False) -> None:
        self.url = url
        self.settings = settings
        self.strict = strict
        self.key = settings.key.get_secret_value() if settings.key else ""
        # The list of models may depend on the key, so lists and connections are kept per key.
        name = f"{url} {hashlib.sha256(self.key.encode()).hexdigest()[:16]}"
        origin: Origin = services.process_state(f"origin {name}", lambda: origin_of(url, services))
        origin.headers = headers_of(settings)
        self.http = HostClient(origin, services.worker_info.server, settings.max_answer_bytes, KIND, self.error_of)
        self.model_list = services.process_state(f"model list {name}", lambda: OpenAIModelList(self.http, services))

    def open(self) -> None:
        self.model_list.client = self.http

    def error_of(self, status: int, body: bytes, model: str) -> ProxyError:
        """The error of a failed answer, from which the key is removed if the server repeats it."""
        if self.key:
            body = body.replace(self.key.encode(), b"(key)")
        return openai_refusals.error_of(status, body, model)

    # --- what it has ---------------------------------------------------------------------------------

    async def models(self) -> Mapping[str, ModelInfo]:
        """By canonical name.  Raises UpstreamError if there is no list that is recent enough."""
        return await self.model_list.all()

    async def find(self, name: str) -> ModelInfo | None:
        """Raises UpstreamError."""
        return await self.model_list.find(name)

    def known(self, name: str) -> ModelInfo | None:
        """A model by its canonical name, from the cached list."""
        return self.model_list.known.get(name)

    def warm(self, name: str) -> bool:
        """Always true: such a server is taken to have loaded all that it lists."""
        return True

    def loaded(self) -> Collection[str]:
        return self.model_list.known.keys()

    async def poll(self) -> None:
        """Refresh the list of models if it is old.  Raises UpstreamError."""
        if self.model_list.is_old:
            await asyncio.shield(self.model_list.start_refresh())

    def window(self, name: str) -> int | None:
        """Unknown: only the list of models may have it."""
        return None

    def mark_outdated(self) -> None:
        self.model_list.refreshed_at = float("-inf")

    async def running(self) -> list[JSON]:
        """Unknown: OpenAI's API does not tell."""
        return []

    async def show(self, body: Mapping[str, JSON]) -> bytes:
        """What is known about a model, in the format of Ollama's `/api/show`."""
        name = str(body.get("model", ""))
        return openai_models.shown(await self.find(name) or ModelInfo(name))

    async def version(self) -> str:
        """Always "", since it is no Ollama's.  Raises UpstreamError if the server does not answer."""
        await self.poll()
        return ""

    # --- what it answers -----------------------------------------------------------------------------

    def __call__(self, call: Call, info: ModelInfo) -> Awaitable[Reply]:
        if isinstance(call.ask, Embed):
            return self.embed(call, call.ask, info)
        return self.generate(call, call.ask, info)

    async def generate(self, call: Call, ask: Chat | Complete, info: ModelInfo) -> Reply:
        if is_empty(ask):  # the call only loads the model, which counts as loaded
            return Reply.of(replay([Finish("load")]))
        # Before the request is sent, since an invalid schema must not cost tokens.
        plan, stages = await planned(ask, partial(self.plan, call, ask, info))
        reply = await (self.answer_streamed if call.stream else self.answer_whole)(call, plan)
        if stages:
            reply = await repair.apply_stages(call, reply, stages)
        return reply.noting(params=notes_text(plan.notes)) if plan.notes else reply

    def plan(self, call: Call, ask: Chat | Complete, info: ModelInfo) -> tuple[Plan, list[Stage]]:
        """The request to send, and the stages that repair its answer."""
        plan = openai_bodies.plan(info.name, ask, call.stream, self.settings.options)
        if plan.notes and self.strict:
            raise strict_refusal(next(iter(plan.notes)))
        return plan, stages_of(plan, call.stream)

    async def answer_whole(self, call: Call, plan: Plan) -> Reply:
        response = await self.http.send(plan.path, plan.body, call)
        try:
            document = await self.http.read(response)
        finally:
            response.close()
        reader = AnswerReader(call.model, plan.top, self.error_of)
        return Reply.of(replay([*reader.read(document), *reader.end()]))

    async def answer_streamed(self, call: Call, plan: Plan) -> Reply:
        response = await self.http.send(plan.path, plan.body, call)
        events = self.events(response, AnswerReader(call.model, plan.top, self.error_of))
        return await begun(Reply.of(events).on_close(response.close))

    async def events(self, response: Connection, reader: AnswerReader) -> Events:
        """Reads until `[DONE]` or the end of the body, because the usage comes after the finish reason."""
        parser = sse.Parser(self.http.most)
        while not reader.done and (data := await self.http.part(response)):
            for payload in parser.feed(data):
                for event in reader.read(payload):
                    yield event
        for payload in () if reader.done else parser.end():
            for event in reader.read(payload):
                yield event
        for event in reader.end():
            yield event
        await self.http.drain(response)

    async def embed(self, call: Call, ask: Embed, info: ModelInfo) -> Reply:
        return await in_batches(ask, self.settings.embed_batch, partial(self.batch, call, ask, info))

    async def batch(self, call: Call, ask: Embed, info: ModelInfo, inputs: tuple[str, ...]) -> tuple[Vectors, Usage]:
        body = openai_bodies.embed_body(info.name, inputs, ask.dimensions)
        response = await self.http.send("/embeddings", body, call)
        try:
            return openai_chunks.vectors_of(await self.http.read(response), len(inputs), ask.dimensions)
        finally:
            response.close()


class OpenAIModelList(ModelList):
    """The models of such a server; it tells nothing about them beyond its list."""

    def __init__(self, client: HostClient, services: Services) -> None:
        super().__init__(client, services.background, services.clock, "/models", openai_models.read_models)

    async def with_capabilities(self, info: ModelInfo) -> ModelInfo:
        return info


def headers_of(settings: Upstream) -> str:
    """Additional header lines of every request to such a server."""
    return f"Authorization: Bearer {settings.key.get_secret_value()}\r\n" if settings.key else ""


def stages_of(plan: Plan, stream: bool) -> list[Stage]:
    """The checks that an answer must pass, as the server may ignore what it was asked for; often none."""
    stages: list[Stage] = []
    if plan.one_call:
        stages.append(repair.only_first_call)
    if plan.json or plan.strict_tools or plan.must_call:
        stages.append(repair.AnswerCheck(plan.json, plan.schema, plan.strict_tools, plan.must_call).stage(stream))
    return stages
