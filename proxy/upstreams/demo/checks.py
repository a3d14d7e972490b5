"""Checks whether a model can do what a request asks for, in the same order as Ollama."""

from dataclasses import replace

from .generation_request import GenerationRequest, Message, schema_of
from .go_format import quoted
from .model_store import ModelStore, StoredModel
from .models import Model
from .names import local, parsed
from .refusals import NO_IMAGES, NO_LOGPROBS, NO_MULTIMODAL, PREFILL, Refused, nested


def find_model(store: ModelStore, ask: GenerationRequest) -> StoredModel:
    """The requested model.  Raises Refused with the error message of the endpoint."""
    name = parsed(local(ask.model)) if ask.model else None
    if name is None and ask.chats:
        raise Refused(400, "invalid model name" if ask.model else "model is required")
    if stored := store.find(name):
        return stored
    raise Refused(404, f"model '{ask.model}' not found")


def find_embedding_model(store: ModelStore, spelled: str) -> StoredModel:
    """As `find_model`, for the endpoints for embeddings, whose messages differ."""
    name = parsed(local(spelled)) if spelled else None
    if name is None:
        raise Refused(404, f"model '{spelled}' not found")
    if stored := store.find(name):
        return stored
    raise Refused(404, f"model {quoted(spelled)} not found, try pulling it first")


def check_capabilities(ask: GenerationRequest, stored: StoredModel) -> GenerationRequest:
    """The request with the model's system prompt.  Raises Refused if the model lacks a capability."""
    model, full = stored.model, stored.name.full
    if ask.raw and any(ask.body.get(name) for name in ("template", "system", "context")):
        raise Refused(400, "raw mode does not support template, system, or context")
    if ask.think and not model.can("thinking"):
        raise Refused(400, f"{quoted(ask.model)} does not support thinking")
    if not model.can("completion"):
        raise Refused(400, f"{quoted(ask.model)} does not support {'chat' if ask.chats else 'generate'}")
    if ask.suffix and not ask.empty and not model.can("insert"):
        raise Refused(400, f"{full} does not support insert")
    if ask.tools and not model.can("tools"):
        raise Refused(400, f"{full} does not support tools")
    return _with_system(ask, stored.system)


def _with_system(ask: GenerationRequest, system: str) -> GenerationRequest:
    if not system or ask.empty or ask.raw or ask.messages[0].role == "system":
        return ask
    return replace(ask, messages=(Message("system", system), *ask.messages))


def check_when_loaded(ask: GenerationRequest, model: Model) -> None:
    """The checks that are made only when the model is loaded, by its runner.  Raises Refused."""
    schema_of(ask)
    if ask.images and not model.can("vision"):
        raise _no_images(model)
    if model.mode == "native" and ask.chats:
        _native(ask)


def _no_images(model: Model) -> Refused:
    if model.mode == "native":
        return nested(500, NO_IMAGES, "server_error")
    return Refused(500, NO_MULTIMODAL)


def _native(ask: GenerationRequest) -> None:
    if any(tool.parameters is None for tool in ask.tools):
        raise nested(400, "JSON schema error at #: properties must be an object")
    if ask.tools and ask.logprobs:
        raise nested(400, NO_LOGPROBS)
    if [message.role for message in ask.messages[-2:]] == ["assistant", "assistant"]:
        raise nested(400, PREFILL)
