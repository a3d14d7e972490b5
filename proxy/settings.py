"""The settings of a configuration file: what each is, its default, and what it may be."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    WithJsonSchema,
    model_validator,
)

MIB = 1024 * 1024


class Strict(BaseModel):
    """Base of every settings model: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _http_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http:// or https:// URL")
    if parts.username or parts.query or parts.fragment:
        raise ValueError("a URL here has no user, query or fragment")
    return url.rstrip("/")


def _base_path(path: str) -> str:
    path = path.rstrip("/")
    if path and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path):
        raise ValueError(f"{path!r} is not a path such as '/llm'")
    return path


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


def _header_word(key: SecretStr) -> SecretStr:
    """What may stand in a header: a line break in a key would begin another header."""
    if not re.fullmatch(r"[!-~]+", key.get_secret_value()):
        raise ValueError("a key for an upstream is one word of printable ASCII; is its environment variable set?")
    return key


Url = Annotated[str, AfterValidator(_http_url)]
Urls = Annotated[
    tuple[Url, ...],
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    AfterValidator(lambda urls: tuple(dict.fromkeys(urls))),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
"""One URL, or a list of them."""


GO_DURATION = re.compile(r"-?(\d+(\.\d*)?(ns|us|µs|ms|s|m|h))+")


def _keep_alive(value: float | str) -> float | str:
    if isinstance(value, str) and not GO_DURATION.fullmatch(value):
        raise ValueError(f"{value!r} is neither seconds nor a duration such as '10m' or '-1s'")
    return value


KeepAlive = Annotated[float | str, AfterValidator(_keep_alive)]


class Listen(Strict):
    """Where the server listens; a restart changes these."""

    host: str = "127.0.0.1"
    """Address to bind.  Any but a loopback address wants `keys`."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """TCP port; 0 takes a free one."""
    drain: NonNegativeFloat = 30.0
    """Seconds that running calls may take to finish when the server stops."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes that answer; more than one run under a supervisor, which restarts those that die."""
    base_path: Annotated[str, AfterValidator(_base_path)] = ""
    """Path under which a gateway serves this server, such as `/llm`, if the gateway leaves it in the URL."""
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    """Addresses and networks of gateways, whose `X-Forwarded-For` and `-Proto` are believed."""


class Demo(Strict):
    """The simulated Ollama."""

    delay: NonNegativeFloat = 0.0
    """Seconds between two pieces of an answer."""
    load_time: NonNegativeFloat = 0.0
    """Seconds that a cold model takes to load."""


class Line(Strict):
    """Where calls wait while every host of an upstream is busy."""

    most: PositiveInt = 256
    """Calls that may wait; a further one is a 429."""
    wait: PositiveFloat = 60.0
    """Seconds that a call may wait; then it is a 429."""


EXTRAS = Literal["top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "num_keep"]
"""Sampling options that Ollama has and OpenAI has not."""


class Upstream(Strict):
    """Where models live: exactly one of `ollama`, `openai` and `demo`."""

    ollama: Urls | None = None
    """URL of an Ollama server; or a list of them, which are then one pool of equal hosts."""
    openai: Urls | None = None
    """Base URL, with its `/v1`, of any server that speaks OpenAI's API; or a list of them."""
    demo: Demo | None = None
    """A simulated Ollama inside this process, for trying things out."""
    key: Annotated[SecretStr, AfterValidator(_header_word)] | None = None
    """Bearer key for an `openai` upstream, best from the environment: `"${OPENAI_API_KEY}"`."""
    options: tuple[EXTRAS, ...] = ()
    """Sampling options beyond OpenAI's that an `openai` upstream understands; others are ignored and told."""
    slots: PositiveInt | None = None
    """Calls that each host works on at once; more wait in line.  Unset hands every call on: Ollama has a line of
    its own, without bound."""
    line: Line = Line()
    """Where calls wait while every host is busy."""
    allow_cloud: bool = False
    """Whether names such as `gpt-oss:120b-cloud`, which Ollama forwards to ollama.com, may be asked for."""
    embed_batch: PositiveInt = 64
    """Texts sent in one embeddings request; longer lists are split."""
    load_timeout: PositiveFloat = 600.0
    """Seconds that a cold model may take to load."""
    max_answer_bytes: PositiveInt = 64 * MIB
    """Bytes that one line or one whole answer of the upstream may have."""

    @model_validator(mode="after")
    def _one_kind(self) -> Upstream:
        if sum(kind is not None for kind in (self.ollama, self.openai, self.demo)) != 1:
            raise ValueError("an upstream is one of `ollama: URL`, `openai: URL` and `demo: {}`")
        if self.openai is None and self.model_fields_set & {"key", "options"}:
            raise ValueError("`key` and `options` are for `openai` upstreams")
        if self.openai is not None and self.model_fields_set & {"allow_cloud", "load_timeout"}:
            raise ValueError("`allow_cloud` and `load_timeout` are for `ollama` upstreams")
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses of its hosts; none where it is simulated."""
        return self.ollama or self.openai or ()


class Model(Strict):
    """What the operator fixes for a model.  The name `*` stands for every model that is not listed."""

    alias: str | None = None
    """Another model's name: calls for this one go there."""
    upstream: str | None = None
    """Name of the upstream where it lives; unset takes the first that lists it."""
    allowed: bool = True
    """Whether callers may ask for it."""
    keep_alive: KeepAlive | None = None
    """How long Ollama keeps it loaded after a call: seconds, or a duration such as `10m`; negative is for ever."""
    num_ctx: Annotated[int, Field(ge=4)] | None = None
    """Tokens of context that it is loaded with."""
    shift: bool = False
    """Whether Ollama may drop the older half of the context when it overflows while answering."""
    num_batch: PositiveInt | None = None
    """Tokens of a prompt evaluated at once."""
    num_gpu: int | None = None
    """Layers put on the GPU; -1 lets Ollama choose."""
    main_gpu: int | None = None
    """Index of the GPU for small tensors."""
    num_thread: PositiveInt | None = None
    """CPU threads."""
    use_mmap: bool | None = None
    """Whether the weights are memory-mapped."""
    draft_num_predict: int | None = None
    """Tokens drafted ahead by a draft model."""


class Key(Strict):
    """A bearer key with a role."""

    key: SecretStr
    """The secret, best from the environment: `"${ALICE_KEY}"`."""
    role: Literal["user", "admin"] = "user"
    """What it opens: `user` the chains, `admin` everything."""


class Requests(Strict):
    """What is taken from callers."""

    max_bytes: PositiveInt = 32 * MIB
    """Bytes of a request's body, after decompression; more is a 413."""
    body_timeout: PositiveFloat = 60.0
    """Seconds that a request's body may take to arrive; more is a 408."""
    max_depth: Annotated[int, Field(ge=8, le=200)] = 64
    """Levels of nesting of a request's JSON; more is a 400."""
    max_choices: PositiveInt = 8
    """The largest `n`."""
    max_inputs: PositiveInt = 2048
    """Texts in one embeddings request."""
    image_hosts: tuple[str, ...] = ()
    """Hosts from which http(s) images are fetched; empty refuses them.  Private addresses never are."""
    max_image_bytes: PositiveInt = 20 * MIB
    """Bytes of one image, decoded."""


class Streams(Strict):
    """How answers flow to clients."""

    heartbeat: NonNegativeFloat = 10.0
    """Seconds without a byte after which a waiting stream gets a comment line; 0 is never."""
    buffer_bytes: PositiveInt = MIB
    """Bytes kept for a client that reads more slowly than the model writes."""
    slow_reader: PositiveFloat = 30.0
    """Seconds that the buffer may stay full before the call is ended with an error."""


class Web(Strict):
    """Who may call from a browser."""

    origins: tuple[str, ...] = ()
    """Origins that get CORS headers, such as `https://app.example.com`; `*` is any.  Empty: CORS is off."""
    hosts: tuple[str, ...] = ()
    """Host names accepted besides loopback ones while no keys are configured."""


class Log(Strict):
    """What the server writes to standard error; a restart changes these."""

    format: Literal["plain", "json"] = "plain"
    """A line for people, or a JSON object a line."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is written; request lines are `info`."""


class Config(Strict):
    """One configuration file."""

    listen: Listen = Listen()
    """Where the server listens."""
    upstreams: Annotated[dict[str, Upstream], Field(min_length=1)] = {
        "local": Upstream(ollama=("http://127.0.0.1:11434",))
    }
    """Named places where models live."""
    models: dict[str, Model] = {}
    """Aliases, pins and permissions, by model name."""
    keys: dict[str, SecretStr | Key] = {}
    """Bearer keys by the caller's name: a secret, or `{key, role}`.  Empty: only loopback, everybody is admin."""
    writes: str | None = None
    """Name of the `ollama` upstream whose models admins may pull, create, copy, push and delete through Ollama's own
    endpoints; unset switches these off."""
    params: Literal["lenient", "strict"] = "lenient"
    """`lenient` tells in `x-gemmapy-params` what was emulated, changed or ignored; `strict` refuses it."""
    requests: Requests = Requests()
    """What is taken from callers."""
    streams: Streams = Streams()
    """How answers flow to clients."""
    web: Web = Web()
    """Who may call from a browser."""
    log: Log = Log()
    """What the server writes to standard error."""
    plugins: dict[str, dict[str, Any] | None] = {}
    """Named plugin instances; `use` names the plugin and defaults to the instance's name."""
    chains: dict[Literal["chat", "completions", "embeddings", "internal"], tuple[str, ...]]
    """Plugins by route, from the client inwards.  A route without a chain is switched off."""
