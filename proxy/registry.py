"""Finds, checks and builds the plugins that a configuration names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final

from proxy.advice import hint
from proxy.config import Config
from proxy.errors import ConfigError
from proxy.host import Host
from proxy.yamlfile import Source

GROUP = "gemmapy_proxy.plugins"
DEFERS: Final = ("generates answers in the background", "which is part of that")
MISPLACED: Final = {
    **{
        ("defers", other): DEFERS
        for other in ("records", "chooses", "begins", "limits", "remembers", "changes", "keeps", "tries")
    },
    ("records", "chooses"): ("records calls", "whose choices it would not see"),
    **{
        ("chooses", other): ("chooses what a call is", "which depends on that")
        for other in ("begins", "limits", "remembers", "changes", "keeps", "tries")
    },
    ("records", "limits"): ("records calls", "whose refusals it would not see"),
    ("records", "keeps"): ("records calls", "whose answers it would not see"),
    ("records", "tries"): ("records calls", "whose answers it would not see"),
    ("begins", "limits"): ("sets the messages and the model", "which counts by model"),
    ("begins", "changes"): ("sets the messages and the model", "which changes them"),
    ("begins", "keeps"): ("sets the messages and the model", "which keeps answers"),
    ("begins", "tries"): ("sets the messages and the model", "which tries again"),
    ("begins", "remembers"): ("sets the messages and the model", "which stores them"),
    ("remembers", "changes"): ("stores what callers say", "which changes it"),
    ("remembers", "keeps"): ("stores what callers say", "which keeps answers"),
    ("remembers", "tries"): ("stores what callers say", "which tries again"),
    ("limits", "keeps"): ("counts calls", "which keeps answers"),
    ("limits", "tries"): ("counts calls", "which tries again"),
    ("changes", "keeps"): ("changes the request", "which keeps answers"),
    ("keeps", "tries"): ("keeps answers", "which tries again"),
}
"""Wrong orders in a chain: (place of a plugin, place of one that comes before it), with what the first does and why it
must be further out."""


@cache
def known() -> Mapping[str, Any]:
    """The entry points of all installed plugins, by name, not yet imported.

    Cached, because finding them means reading the metadata of all installed packages.
    """
    return {point.name: point for point in entry_points(group=GROUP)}


def find(use: str) -> Any:
    """The plugin class with this entry point name or `package.module:Class` path.

    Raises LookupError, ImportError or AttributeError.
    """
    if ":" in use:
        module, _, name = use.partition(":")
        return getattr(import_module(module), name)
    points = known()
    if use not in points:
        meant = hint(use, points) or '; one of your own is named as `use: "module:Class"`'
        raise LookupError(f"no plugin is called {use!r}{meant}")
    return points[use].load()


def uses(config: Config, plugin: str) -> bool:
    """Whether the configuration declares this plugin, under any name."""
    return any(
        find(str((declared or {}).get("use", name))) is find(plugin) for name, declared in config.plugins.items()
    )


def build_plugins(config: Config, source: Source, host: Host) -> dict[str, Any]:
    """Every plugin that the configuration declares.  Raises one ConfigError with all problems."""
    plugins: dict[str, Any] = {}
    problems: list[str] = []
    for name, declared in config.plugins.items():
        try:
            cls, settings = described(name, declared or {}, source)
            plugins[name] = built(cls, settings, host, name, source)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return plugins


def in_order(plugins: Iterable[Any]) -> list[Any]:
    """The order in which plugins are entered; they are exited in reverse.  Those that measure calls come first, so that
    they still see the calls that end when others exit; those that generate answers in the background come last."""
    return sorted(plugins, key=lambda one: (getattr(one, "place", "") == "defers") - getattr(one, "measures", False))


def described(name: str, declared: Mapping[str, Any], source: Source) -> tuple[Any, Any]:
    """The class of a plugin, and its checked settings.  Raises ConfigError."""
    settings = dict(declared)
    use = settings.pop("use", name)
    try:
        cls = find(str(use))
    except Exception as error:  # importing a plugin runs its code
        raise ConfigError([source.problem(("plugins", name), import_problem(error))]) from error
    return cls, source.check(cls.Settings, settings, ("plugins", name))


def built(cls: Any, settings: Any, host: Host, name: str, source: Source) -> Any:
    """The plugin.  Whatever its constructor raises becomes a ConfigError, as a problem of the file."""
    try:
        return cls(settings, host)
    except ConfigError as error:
        raise ConfigError([source.problem(("plugins", name), text) for text in error.problems]) from error
    except Exception as error:
        raise ConfigError([source.problem(("plugins", name), import_problem(error))]) from error


def problems_of(source: Source) -> list[str]:
    """The problems of the plugins and chains of a file, even if other parts of it are wrong.  Builds nothing."""
    data = source.data if isinstance(source.data, dict) else {}
    plugins, chains = data.get("plugins") or {}, data.get("chains") or {}
    astray = [name for name in data if name not in Config.model_fields and name in known()]
    problems = [source.problem((name,), f"`{name}` is a plugin: put it under `plugins:`") for name in astray]
    if not isinstance(plugins, dict) or not isinstance(chains, dict):
        return problems  # the check of the whole file reports the wrong type
    found: dict[str, Any] = {}
    for name, declared in plugins.items():
        try:
            found[name], _ = described(name, declared if isinstance(declared, dict) else {}, source)
        except ConfigError as error:
            problems += error.problems
    for route, names in chains.items():
        if isinstance(names, list):
            problems += chain_problems(route, names, {**dict.fromkeys(astray), **plugins}, found, source)
            problems += missing(route, names, found, source)
    return problems


def missing(route: str, names: list[Any], found: Mapping[str, Any], source: Source) -> Iterable[str]:
    """Problems with plugins that are not in this chain although their endpoints send calls through it."""
    for name, cls in found.items():
        if route in getattr(cls, "asks", ()) and name not in names:
            text = f"{name!r} must be in this chain: its own endpoints send calls through it"
            yield source.problem(("chains", route), text)


def chain_problems(
    route: str, names: list[Any], plugins: Mapping[str, Any], found: Mapping[str, Any], source: Source
) -> Iterable[str]:
    for index, name in enumerate(names):
        place = ("chains", route, index)
        if not isinstance(name, str):
            continue  # reported by the check of the whole file
        if name not in plugins:
            yield source.problem(place, f"{name!r} is not under plugins{meant(name, plugins)}")
        elif name in found and not sits(found[name]):
            yield source.problem(place, f"{name!r} cannot be in a chain; it only needs to be listed under `plugins`")
        elif name in names[:index]:
            yield source.problem(place, f"{name!r} is in this chain twice")
        elif name in found:
            yield from (source.problem(place, text) for text in out_of_place(name, names[:index], found))


def sits(cls: Any) -> bool:
    """Whether a plugin can be in a chain; some have only endpoints."""
    return any("__call__" in vars(base) for base in cls.__mro__)


def doubts(config: Config, source: Source) -> Iterator[str]:
    """Warnings about plugins that could be in a chain but are in none."""
    used = {name for names in config.chains.values() for name in names}
    for name, declared in config.plugins.items():
        if name not in used and sits(described(name, declared or {}, source)[0]):
            yield f"{name!r} is under `plugins` and in no chain: no call goes through it"


def meant(name: str, plugins: Mapping[str, Any]) -> str:
    """Advice for an unknown name in a chain; it never suggests a name that is itself wrong."""
    offered = known()
    if name in offered:
        return f"; declare it there, as `{name}: {{}}`"
    own = [one for one, told in plugins.items() if one in offered or (isinstance(told, dict) and "use" in told)]
    return hint(name, own) or hint(name, offered)


def out_of_place(name: str, before: list[Any], found: Mapping[str, Any]) -> Iterable[str]:
    """Problems with the order of a plugin and those before it; for example, a cached answer must be the answer to the
    final request."""
    mine = getattr(found[name], "place", "")
    for other in (one for one in before if isinstance(one, str)):  # other types are reported at their own place
        if reasons := MISPLACED.get((mine, getattr(found.get(other), "place", ""))):
            does, why = reasons
            yield f"{name!r} {does} and must come before {other!r}, {why}"


def import_problem(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        if (error.name or "").partition(".")[0] in ("plugins", "proxy"):
            owned = "`plugins` and `proxy` are the server's own packages, so choose another name"
            return f"no module is called {error.name!r}: {owned}"
        return f"no module is called {error.name!r}: is it installed, or on PYTHONPATH?"
    return str(error) if isinstance(error, LookupError) else f"{type(error).__name__}: {error}"
