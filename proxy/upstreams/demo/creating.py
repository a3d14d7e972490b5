"""Creates models: from another one, with or without an adapter, or from an uploaded file."""

import hashlib
import time
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from aiohttp import web

from .decode import Body, body_of
from .delivery import Delivery, document
from .model_store import ModelStore, StoredModel
from .models import Model
from .names import Name, local, parsed
from .refusals import Refused

if TYPE_CHECKING:
    from .calls import Call

GGUF = b"GGUF"
NO_ADAPTERS_FROM = (0, 34, 1)
"""The first version that no longer accepts adapters."""
NO_ADAPTERS = "LoRA adapters are no longer supported"
NOT_GGUF = "supplied file was not in GGUF format"
ONE_ADAPTER = "only one adapter is currently supported"


async def create(call: "Call") -> web.StreamResponse:
    """/api/create: a model from another one or a file, optionally with its own system prompt and parameters."""
    body = body_of(call.body(), "CreateRequest")
    for path in (*body.get("files", ()), *body.get("adapters", ())):
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise Refused(400, "file path must be relative")
    if body.get("adapters") and version_numbers(call.simulator.version) >= NO_ADAPTERS_FROM:
        raise Refused(400, NO_ADAPTERS)
    if (name := parsed(body.get("model") or body.get("name", ""))) is None:
        raise Refused(400, "invalid model name")
    lines = create_model(call.simulator.store, body, name)
    return await send_status(call, body, lines)


def create_model(store: ModelStore, body: Body, name: Name) -> list[dict[str, Any]]:
    """Create and store the model; gives the status lines, or one line with an error."""
    if body.get("from"):
        base = store.find(parsed(local(body["from"])))
        if base is None:
            return [{"error": "pull model manifest: file does not exist"}]
        layers = [f"sha256:{base.model.digest}", *adapter_digests(store, body.get("adapters", {}))]
        made = replace(renamed(base, name), parent=base.name.short)
        if layers[1:]:
            made = replace(made, model=replace(made.model, digest=combined_digest(layers)))
    elif "files" in body:
        layers = [file_digest(store, body["files"])]
        made = StoredModel(Model(name.short, frozenset({"completion"}), digest=combined_digest(layers)), time.time())
    else:
        raise Refused(400, "neither 'from' or 'files' was specified")
    changed = {key: body[key] for key in ("system", "template") if body.get(key)}
    store.add(replace(made, parameters={**made.parameters, **body.get("parameters", {})}, **changed))
    lines = [] if body.get("from") and not body.get("adapters") else ["parsing GGUF"]
    lines += [*(f"using existing layer {layer}" for layer in layers), "writing manifest", "success"]
    return [{"status": line} for line in lines]


def adapter_digests(store: ModelStore, adapters: dict[str, Any]) -> list[str]:
    if len(adapters) > 1:
        raise Refused(400, ONE_ADAPTER)
    return [file_digest(store, adapters)] if adapters else []


def file_digest(store: ModelStore, files: dict[str, Any]) -> str:
    """The digest of the first file, which must have been uploaded and be GGUF."""
    for path, digest in files.items():
        if str(digest) not in store.blobs:
            raise Refused(400, f"open blobs/{str(digest).replace(':', '-')}: no such file or directory")
        gguf = store.blobs[digest] == GGUF
        if not gguf:
            raise Refused(400, NOT_GGUF if path.endswith(".gguf") else "unknown type")
        return str(digest)
    raise Refused(400, "no files provided to convert")


def combined_digest(layers: list[str]) -> str:
    return hashlib.sha256(" ".join(layers).encode()).hexdigest()


def version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("-")[0].split(".") if part.isdigit())


def renamed(stored: StoredModel, name: Name) -> StoredModel:
    return replace(stored, model=replace(stored.model, name=name.short), modified=time.time())


async def send_status(call: "Call", body: Body, lines: list[dict[str, Any]]) -> web.StreamResponse:
    """Answer with all status lines, or only with the last one if it is not streamed."""
    if body.get("stream", True):
        sending = Delivery(call.request, True, call.fault(), call.simulator.delay, call.simulator.split)
        await sending.lines(lines)
        return await sending.end()
    if error := lines[-1].get("error"):
        raise Refused(500, error)
    return document(lines[-1])
