"""/api/embed and the legacy /api/embeddings."""

import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from .checks import find_embedding_model
from .decode import Body, body_of
from .delivery import deliver_document, document
from .go_format import parse_keep_alive
from .model_store import StoredModel
from .models import Model
from .options import LoadOptions, checked_options, load_options
from .prompts import tokens_of
from .refusals import NO_EMBEDDINGS, Refused
from .vectors import Vector, shortened, vector

if TYPE_CHECKING:
    from .calls import Call


async def embed(call: "Call") -> web.StreamResponse:
    body = body_of(call.body(), "EmbedRequest")
    texts = _inputs(body.get("input"))
    keep = parse_keep_alive(body.get("keep_alive"))
    stored = find_embedding_model(call.simulator.store, body.get("model", ""))
    wanted = _wanted(body, stored)
    fault = call.fault(generates=bool(texts))
    begun = time.perf_counter_ns()
    with call.simulator.counting(generates=bool(texts)) as counter:
        async with call.simulator.scheduler.using(stored.model, wanted, keep, fault):
            ready = time.perf_counter_ns()
            if not texts:
                return document({"model": body["model"], "embeddings": []})
            with counter.generating():
                vectors, tokens = _vectors(texts, body, stored.model, wanted)
                answer: dict[str, Any] = {"model": body["model"], "embeddings": vectors}
                answer["total_duration"] = time.perf_counter_ns() - begun
                answer["load_duration"] = ready - begun
                answer |= {"prompt_eval_count": tokens} if tokens else {}
                response = await deliver_document(call.request, answer, fault)
                counter.finish()
                return response


async def embeddings(call: "Call") -> web.StreamResponse:
    """The old endpoint: one prompt, and a vector of doubles that is not normalised."""
    body = body_of(call.body(), "EmbeddingRequest")
    keep = parse_keep_alive(body.get("keep_alive"))
    stored = find_embedding_model(call.simulator.store, body.get("model", ""))
    wanted, prompt = _wanted(body, stored), body.get("prompt", "")
    fault = call.fault(generates=bool(prompt))
    with call.simulator.counting(generates=bool(prompt)) as counter:
        async with call.simulator.scheduler.using(stored.model, wanted, keep, fault):
            if not prompt:
                return document({"embedding": []})
            with counter.generating():
                if not stored.model.can("embedding"):
                    raise Refused(500, NO_EMBEDDINGS)
                found = vector(prompt, stored.model.dimensions).astype(float) * 10.0
                response = await deliver_document(call.request, {"embedding": found}, fault)
                counter.finish()
                return response


def _wanted(body: Body, stored: StoredModel) -> LoadOptions:
    # Embeddings have no `shift`, so a model that was loaded for chats without it is reloaded.
    options = checked_options({**stored.parameters, **body.get("options", {})})
    return load_options(options, None, stored.model)


def _inputs(given: Any) -> list[str]:
    if given is None or given == "":
        return []
    texts = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str) for text in texts):
        raise Refused(400, "invalid input type")
    return texts


def _vectors(texts: list[str], body: Body, model: Model, wanted: LoadOptions) -> tuple[list[Vector], int]:
    """The texts' embeddings, and the number of tokens that were read."""
    if not model.can("embedding"):
        raise Refused(501, NO_EMBEDDINGS)
    room = min(wanted.room(model), model.context) - 2  # One each for BOS and EOS.
    pieces = [tokens_of(text) for text in texts]
    if body.get("truncate") is False and any(len(tokens) > room for tokens in pieces):
        raise Refused(400, "the input length exceeds the context length")
    kept = [tokens[: max(room, 0)] for tokens in pieces]
    wide = body.get("dimensions", 0)
    vectors = [shortened(vector("".join(tokens), model.dimensions), wide) for tokens in kept]
    return vectors, sum(len(tokens) + 2 for tokens in kept)
