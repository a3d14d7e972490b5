"""Stages that do to an answer what its upstream cannot: forced tool calls, single tool calls, validated JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any, Final

import orjson

from proxy.errors import BadCall, UpstreamError
from proxy.observer import HeldBackAnswer
from proxy.rejected import grown
from proxy.streams import begun, replay
from proxy.types import JSON, Call, Event, Events, Finish, Reply, Stage, Text, ToolCalled, Usage
from proxy.wire.ids import new_id
from proxy.wire.ollama_chat import Plan
from proxy.wire.schema_weight import Weight

MOST_BACKTRACKS: Final = 10_000
"""Maximum backtracking steps of one regular expression on one text, which take half a millisecond.  With the library's
default of a million, a schema with forty expressions could block the event loop for seconds; most need no steps."""

MOST_PATTERNS: Final = 1000
"""Maximum number of regular expressions in all functions of a call; compiling so many takes 0.1 s to 0.3 s."""


class SchemaValidator:
    """A validator for one JSON schema.  Raises BadCall if the schema is invalid; never fetches a remote reference.

    schemas: how many the call has, which share the time that it may take to compile their regular expressions.
    """

    def __init__(self, schema: Mapping[str, JSON], param: str, schemas: int = 1) -> None:
        self.weight = Weight(schema, param)
        import jsonschema_rs  # slow to import, and only needed by calls with a schema

        try:
            patterns = jsonschema_rs.FancyRegexOptions(MOST_BACKTRACKS, self.weight.pattern_size(schemas))
            self.validator: Any = jsonschema_rs.validator_for(
                dict(schema), retriever=_refuse_to_fetch, pattern_options=patterns
            )
        except (jsonschema_rs.ValidationError, ValueError) as error:
            reason = str(error).splitlines()[0][:300]
            if reason.endswith('is not a "regex"'):
                reason += ", or it is too large"
            raise BadCall(f"Invalid '{param}': {reason}", param=param, code="invalid_schema") from None

    def check(self, value: JSON, what: str) -> None:
        """Raises UpstreamError, which names the first place that does not match.  what: names the value in messages."""
        if not self.weight.allows(value):
            raise UpstreamError(f"{what} is too deep to be checked against its schema.", "invalid_answer")
        error = next(self.validator.iter_errors(value), None)
        if error is not None:
            place = "/".join(map(str, error.instance_path)) or "its root"
            raise UpstreamError(f"{what} does not fit its schema: {error.message[:300]} at {place}", "invalid_answer")


def validators_of(tools: Mapping[str, Mapping[str, JSON]]) -> dict[str, SchemaValidator]:
    """A validator for the parameters of each of these functions.  Raises BadCall."""
    validators: dict[str, SchemaValidator] = {}
    patterns = 0
    for name, parameters in tools.items():
        validators[name] = one = SchemaValidator(parameters, "tools", len(tools))
        patterns += len(one.weight.patterns)
        if patterns > MOST_PATTERNS:
            message = f"Invalid 'tools': the functions have more than {MOST_PATTERNS} regular expressions."
            raise BadCall(message, param="tools", code="invalid_schema")
    return validators


def _refuse_to_fetch(uri: str) -> JSON:
    raise ValueError(f"references outside the schema are not fetched: {uri[:200]}")


def stages_of(plan: Plan, stream: bool) -> list[Stage]:
    """The stages that a call's answer must pass, from the upstream outwards; often none.  Raises BadCall.

    If the answer is not streamed, a failed check raises before the first event, so that a retry is safe.
    """
    stages: list[Stage] = []
    if plan.forced:
        names = {tool.name for tool in plan.forced}
        validators_of({tool.name: tool.parameters for tool in plan.forced})  # raises for an invalid one
        stages.append(lambda source: forced_call(source, names))
    if plan.one_call:
        stages.append(only_first_call)
    if plan.json or plan.strict_tools:
        stages.append(AnswerCheck(plan.json, plan.schema, plan.strict_tools).stage(stream))
    return stages


async def apply_stages(call: Call, reply: Reply, stages: Iterable[Stage]) -> Reply:
    """Apply the stages, and wait for the first event.  What is generated until then is reported to the observer."""
    call.observer.holds(made := HeldBackAnswer())
    reply = reply.through(partial(report_cost, made))
    for stage in stages:
        reply = reply.through(stage)
    reply = await begun(reply)
    made.given = True
    return reply


async def report_cost(made: HeldBackAnswer, source: Events) -> Events:
    async for event in source:
        grown(made, event)
        yield event


async def forced_call(source: Events, names: set[str]) -> Events:
    """Turn the JSON object that stands for a tool call into that call.  Text is held back until it is complete."""
    texts: list[str] = []
    usage: list[Event] = []
    async for event in source:
        if isinstance(event, Text):
            texts.append(event.text)
        elif isinstance(event, Usage):
            usage.append(event)
        elif isinstance(event, Finish):
            # If it was cut short, it is not a valid call, and is passed on as text.
            whole = event.reason == "stop"
            yield parse_call("".join(texts), names) if whole else Text("".join(texts))
            for one in usage:
                yield one
            yield Finish("tool_calls") if whole else event
        else:
            yield event


def parse_call(text: str, names: set[str]) -> ToolCalled:
    try:
        match orjson.loads(text):
            case {"name": str(name), "arguments": dict(arguments)} if name in names:
                return ToolCalled(new_id("call_"), name, orjson.dumps(arguments).decode())
    except orjson.JSONDecodeError:
        pass
    raise missing_call()


def missing_call() -> UpstreamError:
    return UpstreamError("The model did not call a function although it had to.", "invalid_answer")


async def only_first_call(source: Events) -> Events:
    seen = False
    async for event in source:
        if isinstance(event, ToolCalled):
            if seen:
                continue
            seen = True
        yield event


class AnswerCheck:
    """Checks that an answer is JSON that matches its schema, and the arguments of strict tools theirs.

    must_call: the only functions that may be called, of which one must be; empty if none is required.
    """

    def __init__(
        self,
        json: bool,
        schema: Mapping[str, JSON] | None,
        strict_tools: Mapping[str, Mapping[str, JSON]],
        must_call: Collection[str] = (),
    ) -> None:
        self.json = json
        self.validator = SchemaValidator(schema, "response_format") if schema else None
        self.tools = validators_of(strict_tools)
        self.must_call = must_call

    def stage(self, stream: bool) -> Stage:
        return self.check_stream if stream else self.check_whole

    async def check_stream(self, source: Events) -> Events:
        """For streams: passes events on, and raises if a tool call or, at the end, the text is wrong."""
        texts: list[str] = []
        called = False
        async for event in source:
            if isinstance(event, Text):
                texts.append(event.text)
            elif isinstance(event, ToolCalled):
                called = True
                self.check_arguments(event)
            elif isinstance(event, Finish) and event.reason == "stop" and not called:
                if self.must_call:
                    raise missing_call()
                self.check_text("".join(texts))
            yield event

    async def check_whole(self, source: Events) -> Events:
        """For other answers: passes nothing on until the whole answer has arrived and is valid."""
        whole: list[Event] = [event async for event in source]
        events: list[Event] = [event async for event in self.check_stream(replay(whole))]
        for event in events:
            yield event

    def check_arguments(self, event: ToolCalled) -> None:
        if self.must_call and event.name not in self.must_call:
            raise missing_call()
        if validator := self.tools.get(event.name):
            validator.check(orjson.loads(event.arguments), f"The call of {event.name}")

    def check_text(self, text: str) -> None:
        if not self.json:
            return
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise UpstreamError(f"The model's answer is not JSON: {error}", "invalid_answer") from None
        if self.validator is not None:
            self.validator.check(value, "The model's answer")
