"""Reads a YAML file into a checked Config; otherwise one ConfigError lists every problem with its line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from proxy.advice import UNKNOWN
from proxy.errors import ConfigError
from proxy.settings import Config as Config
from proxy.settings import Demo as Demo
from proxy.settings import Key as Key
from proxy.settings import Log as Log
from proxy.settings import Model as Model
from proxy.settings import Requests as Requests
from proxy.settings import Streams as Streams
from proxy.settings import Strict as Strict
from proxy.settings import Upstream as Upstream
from proxy.settings.costs import Currency as Currency
from proxy.settings.costs import Pattern as Pattern
from proxy.settings.costs import Rate as Rate
from proxy.settings.identity import SHORTEST
from proxy.wire.ollama_models import canonical
from proxy.yamlfile import Source

More = Callable[[Source], list[str]]


def load(path: Path, more: More, env: Mapping[str, str] = os.environ) -> tuple[Config, Source]:
    """Read a file.  Raises ConfigError with all problems in it, or if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: {error}"]) from error
    return read(str(path), text, more, env)


def read(name: str, text: str, more: More, env: Mapping[str, str]) -> tuple[Config, Source]:
    """Read a text.  more: finds further problems that this module does not know, such as those of plugins.

    Raises ConfigError with all problems.
    """
    source = Source(name, text, env)
    config, problems = None, list(source.problems)
    try:
        config = source.check(Config, source.data)
        problems += contradictions(config, source)
    except ConfigError as error:
        problems += error.problems
    others = more(source)
    problems = [*(one for one in problems if not _told_better(one, others)), *others]
    # A problem on the same line as an unset variable is only a consequence of it.
    unset = {line for lines in source.unset.values() for line in lines}
    problems = source.problems + [one for one in problems if one not in source.problems and _line(one) not in unset]
    if config is None or problems:
        raise ConfigError(sorted(problems, key=_line))
    return config, source


def _line(problem: str) -> int:
    return int(found[1]) if (found := re.match(r".*?:(\d+): ", problem)) else 0


def _told_better(problem: str, others: list[str]) -> bool:
    """Whether it is about an unknown setting for which the other problems have a better message."""
    place, unknown, _ = problem.partition(UNKNOWN)
    return bool(unknown) and any(one.startswith(place) for one in others)


def contradictions(config: Config, source: Source) -> list[str]:
    """Problems in how parts of the file refer to each other."""
    return [
        *_upstreams_problems(config, source),
        *_models_problems(config, source),
        *_keys_problems(config, source),
        *_header_problems(config, source),
    ]


def doubts(config: Config) -> Iterator[str]:
    """Warnings about what is allowed but probably not intended."""
    yield from _upstreams_doubts(config)
    for name, given in config.keys.items():
        if len((given.key if isinstance(given, Key) else given).get_secret_value()) < SHORTEST:
            yield f"the key of {name!r} is short enough to be guessed; `openssl rand -hex 32` makes a better one"


def _upstreams_doubts(config: Config) -> Iterator[str]:
    hosts: dict[str, list[str]] = {}
    for name, upstream in config.upstreams.items():
        for url in upstream.urls:
            hosts.setdefault(url, []).append(name)
    for url, names in hosts.items():
        if len(names) > 1 and any(config.upstreams[name].slots for name in names):
            yield f"{url} is a host of {' and of '.join(names)}, each of which counts its `slots` alone"
    for name, upstream in config.upstreams.items():
        for url in upstream.openai or ():
            if not urlsplit(url).path:
                yield f"{url} of {name!r} has no path; most servers are asked at {url}/v1"


def _upstreams_problems(config: Config, source: Source) -> Iterator[str]:
    for name, upstream in config.upstreams.items():
        if upstream.slots is not None and upstream.slots < config.listen.workers:
            count = config.listen.workers
            told = f"{upstream.slots} slots cannot be divided among {count} workers; give it {count}, or fewer workers"
            yield source.problem(("upstreams", name, "slots"), told)
        if upstream.share is not None and upstream.share not in config.stores:
            yield source.problem(("upstreams", name, "share"), f"no store is called {upstream.share!r}")
    if config.writes is not None:
        target = config.upstreams.get(config.writes)
        if target is None or target.openai is not None:
            yield source.problem(("writes",), f"no `ollama` upstream is called {config.writes!r}")


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


def _header_problems(config: Config, source: Source) -> Iterator[str]:
    if config.identity_header is not None and not config.listen.trusted_proxies:
        told = "nobody is believed: list the gateway's addresses under listen.trusted_proxies"
        yield source.problem(("identity_header",), told)


def packaged(name: str) -> Path:
    """The path of a file of `config/`: inside the installed package, or next to it in a checkout."""
    here = Path(__file__).parent
    inside = here / "packaged" / name
    return inside if inside.exists() else here.parent / "config" / name


def default_path(env: Mapping[str, str] = os.environ) -> Path:
    """The file to use if none is given: $GEMMAPY_CONFIG, then ./config/proxy.yaml, then the packaged one."""
    if named := env.get("GEMMAPY_CONFIG"):
        return Path(named)
    here = Path("config/proxy.yaml")
    return here if here.exists() else packaged("proxy.yaml")
