"""/api/chat and /api/generate."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from zlib import crc32

from aiohttp import web

from .answers import answer
from .checks import check_capabilities, check_when_loaded, find_model
from .delivery import Delivery, document
from .faults import Fault
from .generation_request import GenerationRequest, parse_chat, parse_generate
from .go_format import timestamp
from .lines import Line, Rules, Script, logprobs_of, script_of
from .models import Model
from .options import LoadOptions, checked_options, load_options
from .prompts import Prompt, prompt_of, tokens_of
from .scheduler import Runner

if TYPE_CHECKING:
    from .calls import Call

Json = dict[str, Any]


async def chat(call: "Call") -> web.StreamResponse:
    ask = parse_chat(call.body())
    return await _answered(call, ask)


async def generate(call: "Call") -> web.StreamResponse:
    ask = parse_generate(call.body())
    return await _answered(call, ask)


async def _answered(call: "Call", ask: GenerationRequest) -> web.StreamResponse:
    stored = find_model(call.simulator.store, ask)
    if ask.unloads:
        call.simulator.scheduler.unload(stored.model)
        return document(_only(ask, "unload"))
    ask = check_capabilities(ask, stored)
    if call.simulator.profile == "old":
        ask = ask.but(logprobs=False)
    options = checked_options({**stored.parameters, **ask.options})
    wanted = load_options(options, ask.shift, stored.model)
    fault = call.fault(generates=not ask.empty)
    with call.simulator.counting(generates=not ask.empty) as counter:
        scheduler = call.simulator.scheduler
        begun = time.perf_counter_ns()
        async with scheduler.using(stored.model, wanted, ask.keep_alive, fault) as runner:
            if ask.empty:
                return document(_only(ask, "load"))
            with counter.generating():
                run = Run(call, ask.but(options=options), runner, begun)
                return await run.delivered(fault, counter.finish)


def _only(ask: GenerationRequest, reason: str) -> Json:
    return _shaped(ask, Line(), True) | {"done": True, "done_reason": reason}


def _shaped(ask: GenerationRequest, line: Line, done: bool) -> Json:
    """A line of an answer as JSON; optional fields that are empty are omitted."""
    said: Json = {"content" if ask.chats else "response": line.text}
    if line.thinking:
        said["thinking"] = line.thinking
    if line.calls:
        said["tool_calls"] = list(line.calls)
    said = {"message": {"role": "assistant", **said}} if ask.chats else said
    shaped = {"model": ask.model, "created_at": timestamp(), **said, "done": done}
    if ask.logprobs and line.tokens:
        shaped["logprobs"] = logprobs_of(line.tokens, ask.top_logprobs)
    return shaped


class Run:
    """One generation by a loaded model."""

    def __init__(self, call: "Call", ask: GenerationRequest, runner: Runner, begun: int) -> None:
        self.call = call
        self.ask = ask
        self.runner = runner
        self.model = runner.model
        self.old = call.simulator.profile == "old"
        self.begun = begun
        self.ready = time.perf_counter_ns()

    async def delivered(self, fault: Fault | None, finish: Callable[[], None]) -> web.StreamResponse:
        check_when_loaded(self.ask, self.model)
        prompt = prompt_of(self.ask, self.model, self.runner.wanted)
        if self.ask.body.get("_debug_render_only"):
            info = {"rendered_template": prompt.text, "image_count": self.ask.images}
            return document({"model": self.ask.model, "created_at": timestamp(), "_debug_info": info})
        cached = prompt.shared(self.runner.prompt)
        script = self._script(prompt, fault)
        self.runner.prompt = prompt.text
        simulator = self.call.simulator
        sending = Delivery(self.call.request, self.ask.stream, fault, simulator.delay, simulator.split)
        complete = await sending.lines(self._documents(script, prompt, cached))
        if complete and not script.broken:
            finish()
        if self.ask.stream or sending.response.prepared:
            return await sending.end()
        return document(_gathered(self.ask, sending.kept))

    def _script(self, prompt: Prompt, fault: Fault | None) -> Script:
        said = self.call.simulator.said(self.ask, prompt) or answer(self.ask, prompt)
        if not self._thinks():
            said = said.but(thinking="")
        elif not self.ask.chats and self.model.mode == "native":
            # Without a Go template, Ollama does not know the tags here, so they stay in the text.
            said = said.inlined()
        script = script_of(said, self._rules(prompt))
        if fault and fault.kind == "long_line":
            script.lines.insert(min(fault.after, len(script.lines)), Line("x" * fault.size))
        return script

    def _thinks(self) -> bool:
        return self.model.can("thinking") and self.ask.think is not False

    def _rules(self, prompt: Prompt) -> Rules:
        return Rules(
            mode=self.model.mode,
            limit=_limit(self.ask, self.model, prompt, self.runner.wanted),
            stop=tuple(self.ask.options.get("stop", ())),
            logprobs=self.ask.logprobs,
            ids=not self.old,
            patient=self.ask.chats and self.model.mode == "native",
            seed=prompt.text,
        )

    def _documents(self, script: Script, prompt: Prompt, cached: int) -> Iterator[Json]:
        first = time.perf_counter_ns()
        for line in script.lines:
            yield _shaped(self.ask, line, False)
        if script.broken:
            return
        last = _shaped(self.ask, script.last, True) | {"done_reason": script.reason}
        if not self.ask.chats and not self.ask.raw:
            last["context"] = [crc32(item.encode()) % 32_000 for item in tokens_of(prompt.text + script.text)]
        yield last | {name: value for name, value in self._metrics(script, prompt, cached, first) if value}

    def _metrics(self, script: Script, prompt: Prompt, cached: int, first: int) -> Iterator[tuple[str, int]]:
        now = time.perf_counter_ns()
        yield "total_duration", now - self.begun
        yield "load_duration", self.ready - self.begun
        if not self.old:
            yield "prompt_eval_count", prompt.tokens
            yield "prompt_eval_cached_count", cached
        else:
            # Old servers count only evaluated tokens, and omit the count if the whole prompt was cached.
            yield "prompt_eval_count", prompt.tokens - cached if prompt.tokens - cached > 1 else 0
        yield "prompt_eval_duration", first - self.ready
        yield "eval_count", script.tokens
        yield "eval_duration", now - first


def _limit(ask: GenerationRequest, model: Model, prompt: Prompt, wanted: LoadOptions) -> int | None:
    """Tokens that may be generated.  A `num_predict` of 0 means no limit, or 1 in a native chat, as in Ollama."""
    asked = ask.options.get("num_predict", -1)
    if asked == 0:
        asked = 1 if model.mode == "native" and ask.chats else -1
    room = wanted.room(model)
    most = room * 10 if wanted.shift else max(room - prompt.tokens, 1)
    return min(asked, most) if asked > 0 else most


def _gathered(ask: GenerationRequest, kept: list[Json]) -> Json:
    """The lines of an answer, merged into one document; `done` is false if the last line is missing."""
    if not kept:
        return _shaped(ask, Line(), False)
    whole = dict(kept[-1])
    parts = [line["message"] if ask.chats else line for line in kept]
    text = "content" if ask.chats else "response"
    joined: Json = {text: "".join(part[text] for part in parts)}
    if thinking := "".join(part.get("thinking", "") for part in parts):
        joined["thinking"] = thinking
    if calls := [call for part in parts for call in part.get("tool_calls", ())]:
        joined["tool_calls"] = calls
    if logprobs := [entry for line in kept for entry in line.get("logprobs", ())]:
        whole["logprobs"] = logprobs
    return whole | ({"message": {"role": "assistant", **joined}} if ask.chats else joined)
