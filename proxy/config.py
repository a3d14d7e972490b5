"""YAML in, a checked Config out; or one ConfigError listing every problem with its line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)

from proxy.errors import ConfigError
from proxy.wire.ollama_models import canonical
from proxy.yamlfile import Source

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


Url = Annotated[str, AfterValidator(_http_url)]


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


class Demo(Strict):
    """The simulated Ollama."""

    delay: NonNegativeFloat = 0.0
    """Seconds between two pieces of an answer."""
    load_time: NonNegativeFloat = 0.0
    """Seconds that a cold model takes to load."""


class Upstream(Strict):
    """Where models live: exactly one of `ollama` and `demo`."""

    ollama: Url | None = None
    """URL of an Ollama server."""
    demo: Demo | None = None
    """A simulated Ollama inside this process, for trying things out."""
    allow_cloud: bool = False
    """Whether names such as `gpt-oss:120b-cloud`, which Ollama forwards to ollama.com, may be asked for."""
    embed_batch: PositiveInt = 64
    """Texts sent to Ollama in one embeddings request; longer lists are split."""
    load_timeout: PositiveFloat = 600.0
    """Seconds that a cold model may take to load."""
    max_answer_bytes: PositiveInt = 64 * MIB
    """Bytes that one line or one whole answer of the upstream may have."""

    @model_validator(mode="after")
    def _one_kind(self) -> Upstream:
        if (self.ollama is None) == (self.demo is None):
            raise ValueError("an upstream is either `ollama: URL` or `demo: {}`")
        return self


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
        "local": Upstream(ollama="http://127.0.0.1:11434")
    }
    """Named places where models live."""
    models: dict[str, Model] = {}
    """Aliases, pins and permissions, by model name."""
    keys: dict[str, SecretStr | Key] = {}
    """Bearer keys by the caller's name: a secret, or `{key, role}`.  Empty: only loopback, everybody is admin."""
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


More = Callable[[Source], list[str]]


def load(path: Path, more: More, env: Mapping[str, str] = os.environ) -> tuple[Config, Source]:
    """Raises ConfigError with everything that is wrong in the file, or if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: {error}"]) from error
    return read(str(path), text, more, env)


def read(name: str, text: str, more: More, env: Mapping[str, str]) -> tuple[Config, Source]:
    """more: finds the problems that are not this module's to know, such as those of plugins."""
    source = Source(name, text, env)
    config, problems = None, list(source.problems)
    try:
        config = source.check(Config, source.data)
        problems += _references(config, source)
    except ConfigError as error:
        # What follows from an unset variable is not told beside it.
        problems += [problem for problem in error.problems if _line(problem) not in map(_line, source.problems)]
    problems += more(source)
    if config is None or problems:
        raise ConfigError(sorted(problems, key=_line))
    return config, source


def _line(problem: str) -> int:
    return int(found[1]) if (found := re.match(r".*?:(\d+): ", problem)) else 0


def _references(config: Config, source: Source) -> list[str]:
    """What one part of the file says of another that is not so."""
    return [*_models_problems(config, source), *_keys_problems(config, source)]


def _models_problems(config: Config, source: Source) -> Iterator[str]:
    spelled: dict[str, str] = {}
    for name, model in config.models.items():
        place = ("models", name)
        if model.upstream is not None and model.upstream not in config.upstreams:
            yield source.problem((*place, "upstream"), f"no upstream is called {model.upstream!r}")
        if (other := spelled.setdefault(canonical(name), name)) != name:
            yield source.problem(place, f"this is the same model as {other!r}")
        if model.alias is None:
            continue
        if name == "*":
            yield source.problem((*place, "alias"), "every other name cannot be one alias")
        if config.models.get(model.alias, Model()).alias is not None:
            yield source.problem((*place, "alias"), f"{model.alias!r} is an alias itself")
        if model.model_fields_set - {"alias", "allowed"}:
            yield source.problem(place, f"an alias has no settings of its own; they belong under {model.alias!r}")


def _keys_problems(config: Config, source: Source) -> Iterator[str]:
    secrets: dict[str, str] = {}
    for name, given in config.keys.items():
        secret = (given.key if isinstance(given, Key) else given).get_secret_value()
        if not secret:
            yield source.problem(("keys", name), "this key is empty")
        elif (other := secrets.setdefault(secret, name)) != name:
            yield source.problem(("keys", name), f"this key is also the one of {other!r}")


def packaged(name: str) -> Path:
    """A file of `config/`: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    inside = here / "packaged" / name
    return inside if inside.exists() else here.parent / "config" / name


def default_path(env: Mapping[str, str] = os.environ) -> Path:
    """The file used when none is named: GEMMAPY_CONFIG, ./config/proxy.yaml, then the packaged one."""
    if named := env.get("GEMMAPY_CONFIG"):
        return Path(named)
    here = Path("config/proxy.yaml")
    return here if here.exists() else packaged("proxy.yaml")
