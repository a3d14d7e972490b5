"""The endpoints that list, describe and manage models; changes are kept in memory."""

import hashlib
import re
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from .creating import GGUF, renamed, send_status
from .decode import body_of
from .delivery import deliver_document, document
from .go_format import quoted, timestamp
from .model_store import SIZE, StoredModel, details, show_document, tags_entry
from .models import CATALOGUE
from .names import Name, local, parsed
from .refusals import Refused

if TYPE_CHECKING:
    from .calls import Call

DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


async def root(call: "Call") -> web.StreamResponse:
    return web.Response(text="Ollama is running")


async def version(call: "Call") -> web.StreamResponse:
    return await deliver_document(call.request, {"version": call.simulator.version}, call.fault())


async def status(call: "Call") -> web.StreamResponse:
    return document({"cloud": {"disabled": True, "source": "env"}})


async def tags(call: "Call") -> web.StreamResponse:
    old = call.simulator.profile == "old"
    models = [tags_entry(stored, old) for stored in call.simulator.store.all()]
    return await deliver_document(call.request, {"models": models}, call.fault())


async def ps(call: "Call") -> web.StreamResponse:
    scheduler = call.simulator.scheduler
    models = []
    for runner in scheduler.current():
        stored = call.simulator.store.find(parsed(runner.model.name))
        entry = {"name": runner.model.name, "model": runner.model.name, "size": SIZE}
        entry |= {"digest": runner.model.digest, "details": details(stored) if stored else {}}
        entry |= {"expires_at": timestamp(scheduler.expiry(runner)), "size_vram": 0}
        models.append(entry | {"context_length": runner.wanted.room(runner.model)})
    return await deliver_document(call.request, {"models": models}, call.fault())


async def show(call: "Call") -> web.StreamResponse:
    body = body_of(call.body(), "ShowRequest")
    spelled = body.get("model") or body.get("name", "")
    if not spelled:
        raise Refused(400, "model is required")
    name = parsed(local(spelled))
    if name is None:
        raise Refused(400, "invalid model name")
    if not (stored := call.simulator.store.find(name)):
        raise Refused(404, f"model '{name.short}' not found")
    return await deliver_document(call.request, show_document(stored), call.fault())


async def delete(call: "Call") -> web.StreamResponse:
    body = body_of(call.body(), "DeleteRequest")
    spelled = body.get("model") or body.get("name", "")
    name = _valid(spelled, f"name {quoted(spelled)} is invalid")
    if not (gone := call.simulator.store.remove(name)):
        raise Refused(404, f"model '{spelled}' not found")
    call.simulator.scheduler.unload(gone.model)
    return web.Response()


async def copy(call: "Call") -> web.StreamResponse:
    body = body_of(call.body(), "CopyRequest")
    source, destination = body.get("source", ""), body.get("destination", "")
    old = _valid(source, f"source {quoted(source)} is invalid")
    new = _valid(destination, f"destination {quoted(destination)} is invalid")
    if not (stored := call.simulator.store.find(old)):
        raise Refused(404, f"model {quoted(source)} not found")
    call.simulator.store.add(renamed(stored, new))
    return web.Response()


async def pull(call: "Call") -> web.StreamResponse:
    """Only the models of CATALOGUE can be pulled, for instance after they were deleted."""
    body = body_of(call.body(), "PullRequest")
    name = _valid(body.get("model") or body.get("name", ""), "invalid model name")
    found = next((model for model in CATALOGUE if (known := parsed(model.name)) and known.key == name.key), None)
    lines: list[dict[str, Any]] = [{"status": "pulling manifest"}]
    if found is None:
        return await send_status(call, body, [*lines, {"error": "pull model manifest: file does not exist"}])
    part: dict[str, Any] = {"status": f"pulling {found.digest[:12]}", "digest": f"sha256:{found.digest}"}
    lines += [part | {"total": SIZE, "completed": done} for done in (SIZE // 2, SIZE)]
    lines += [{"status": text} for text in ("verifying sha256 digest", "writing manifest", "success")]
    call.simulator.store.add(StoredModel(found, time.time()))
    return await send_status(call, body, lines)


async def blob(call: "Call") -> web.StreamResponse:
    digest = _digest(call)
    if digest not in call.simulator.store.blobs:
        raise Refused(404, "blob not found")
    return web.Response()


async def upload(call: "Call") -> web.StreamResponse:
    """Keeps only the digest and the first bytes of an uploaded file."""
    digest, found, head = _digest(call), hashlib.sha256(), b""
    async for piece in call.request.content.iter_any():
        found.update(piece)
        head = head or piece[: len(GGUF)]
    if digest in call.simulator.store.blobs:
        return web.Response()
    got = f"sha256:{found.hexdigest()}"
    if got != digest:
        raise Refused(400, f"digest mismatch, expected {quoted(digest)}, got {quoted(got)}")
    call.simulator.store.add_blob(digest, head)
    return web.Response(status=201)


def _digest(call: "Call") -> str:
    match = DIGEST.fullmatch(call.request.match_info["digest"])
    if not match:
        raise Refused(400, "invalid digest format")
    return f"sha256:{match[1].lower()}"


def _valid(spelled: str, complaint: str) -> Name:
    if name := parsed(spelled):
        return name
    raise Refused(400, complaint)
