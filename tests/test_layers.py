"""Modules import only from their own floor and from lower ones."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FLOORS = (
    (
        "proxy.types",
        "proxy.asks",
        "proxy.observer",
        "proxy.estimates",
        "proxy.models",
        "proxy.errors",
        "proxy.caller_data",
        "proxy.file_access",
        "proxy.imports",
        "proxy.fence",
        "proxy.sources",
        "proxy.clock",
        "proxy.announcements",
        "proxy.rejected",
        "proxy.prices",
        "proxy.port",
        "proxy.advice",
        "proxy.readiness",
        "proxy.availability",
        "proxy",
    ),
    (
        "proxy.streams",
        "proxy.stores",
        "proxy.sql",
        "proxy.wire",
        "proxy.forms",
        "proxy.background",
        "proxy.yamlfile",
        "proxy.acceptor",
    ),
    (
        "proxy.chain",
        "proxy.host",
        "proxy.records",
        "proxy.page",
        "proxy.request_reader",
        "proxy.meter",
        "proxy.attempts",
        "proxy.config",
        "proxy.settings",
        "proxy.upstreams",
        "proxy.live",
        "proxy.worker_messages",
        "proxy.storing",
        "proxy.costing",
    ),
    ("plugins",),
    ("proxy.registry", "proxy.identity", "proxy.accounts", "proxy.webtokens", "proxy.edge", "proxy.logs"),
    ("proxy.build", "proxy.optional", "proxy.reference", "proxy.config_file"),
    ("proxy.server", "proxy.worker_slot", "proxy.top"),
    ("proxy.supervisor", "proxy.worker"),
    ("proxy.cli", "proxy.commands", "proxy.__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PLUGINS_MAY = {
    "proxy.caller_data",
    "proxy.file_access",
    "proxy.imports",
    "proxy.fence",
    "proxy.types",
    "proxy.asks",
    "proxy.models",
    "proxy.observer",
    "proxy.estimates",
    "proxy.announcements",
    "proxy.prices",
    "proxy.errors",
    "proxy.streams",
    "proxy.wire",
    "proxy.forms",
    "proxy.stores",
    "proxy.sql",
    "proxy.meter",
    "proxy.attempts",
    "proxy.config",
    "proxy.host",
    "proxy.records",
    "proxy.page",
}
ROOT = Path(__file__).parent.parent
FILES = sorted(path for top in ("proxy", "plugins") for path in (ROOT / top).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str | None:
    """The room (a module or package of a floor) that a module belongs to, or None for a module of another package."""
    while module not in FLOOR and "." in module:
        module = module.rpartition(".")[0]
    return module if module in FLOOR else None


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield name_of(path.parent)  # within its own package
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_import_only_from_lower_floors(path: Path) -> None:
    mine = room(name_of(path))
    assert mine is not None, f"{name_of(path)} belongs to no floor"
    above = [used for used in imports(path) if (theirs := room(used)) and FLOOR[theirs] > FLOOR[mine]]
    assert above == []


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path).startswith("plugins")], ids=name_of)
def test_plugins_import_only_what_is_allowed(path: Path) -> None:
    mine = name_of(path).split(".")[1:2]
    used = {room(one) if room(one) != "plugins" else ".".join(one.split(".")[:2]) for one in imports(path)}
    strangers = used - PLUGINS_MAY - {None, "proxy", ".".join(["plugins", *mine])}
    assert strangers == set()


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path).startswith("proxy.wire")], ids=name_of)
def test_the_wire_modules_do_no_io(path: Path) -> None:
    forbidden = {"asyncio", "aiohttp", "socket", "os", "pathlib", "logging"}
    assert {one.split(".")[0] for one in imports(path)} & forbidden == set()


def test_the_demo_upstream_is_self_contained() -> None:
    inside = ROOT / "proxy" / "upstreams" / "demo"
    used = {one for path in inside.rglob("*.py") for one in imports(path) if one.startswith("proxy")}
    assert {one for one in used if not one.startswith("proxy.upstreams.demo")} == {"proxy.port.Port"}


def test_files_have_at_most_300_lines() -> None:
    assert [name_of(path) for path in FILES if path.read_text().count("\n") > 300] == []
