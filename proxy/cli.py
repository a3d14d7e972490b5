"""The command line."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from proxy import __version__, registry
from proxy import config as configuration
from proxy.commands import documents, evaluate, keys, templates
from proxy.commands.shared import add_config, add_server, command, path_of, run
from proxy.config import Config, Demo
from proxy.errors import ConfigError
from proxy.identity import check_exposure, is_guarded
from proxy.settings import Listen
from proxy.yamlfile import Source


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    args = (worker() if words[:1] == ["worker"] else parser()).parse_args(words)
    try:
        return int(args.do(args) or 0)
    except ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the server handles signals, for example while it waits for its database
        return 128 + signal.SIGINT


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser("gemmapy-proxy", description="An OpenAI-compatible reverse proxy for Ollama.")
    whole.add_argument("--version", action="version", version=f"gemmapy-proxy {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    add_serve(command(commands, "serve", "run the server"))

    one = command(commands, "check", "check a configuration file and print what it sets up")
    one.add_argument("file", type=Path, metavar="FILE", help="YAML file")
    one.set_defaults(do=check)

    one = command(commands, "migrate", "bring the database's tables up to date, as the server does when it starts")
    add_config(one)
    one.set_defaults(do=migrate)

    for more in (keys, templates, documents, evaluate):
        more.add(commands)

    one = command(commands, "simulate", "run a simulated Ollama by itself")
    one.add_argument("--host", type=setting(Listen, "host"), default="127.0.0.1", help="by default 127.0.0.1")
    one.add_argument("--port", type=setting(Listen, "port"), default=11434, help="by default 11434, as Ollama's")
    delay, load_time = setting(Demo, "delay"), setting(Demo, "load_time")
    one.add_argument("--delay", type=delay, default=0.0, help="seconds between two pieces of an answer; 0 by default")
    one.add_argument(
        "--load-time", type=load_time, default=0.0, help="seconds that a cold model takes to load; 0 by default"
    )
    one.set_defaults(do=simulate)

    add_top(command(commands, "top", "show a running server live", "It needs the plugin `metrics`."))

    one = command(commands, "reference", "print the settings reference as Markdown")
    one.add_argument("--parameters", action="store_true", help="print the table of request fields instead")
    one.set_defaults(do=refer)

    one = command(commands, "schema", "print the JSON schema of the configuration file, for editors")
    one.set_defaults(do=schema)
    return whole


def worker() -> argparse.ArgumentParser:
    """The parser of the internal command with which a supervisor starts its workers."""
    one = argparse.ArgumentParser("gemmapy-proxy")
    one.add_argument("worker")
    one.add_argument("control", type=int)
    one.add_argument("channel", type=int)
    one.set_defaults(do=work)
    return one


def setting(model: type[BaseModel], name: str) -> Callable[[str], Any]:
    """An argparse type that reads an argument exactly as the setting of this name."""

    def read(text: str) -> Any:
        try:
            return getattr(model.model_validate({name: text}), name)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(error.errors()[0]["msg"]) from None

    return read


def add_top(one: argparse.ArgumentParser) -> None:
    add_server(one, "an admin's")
    one.add_argument("--once", action="store_true", help="show it once and exit")
    one.set_defaults(do=top)


def add_serve(one: argparse.ArgumentParser) -> None:
    add_config(one)
    one.add_argument("--host", type=setting(Listen, "host"), help="address to listen on, instead of the file's")
    one.add_argument("--port", type=setting(Listen, "port"), help="port to listen on, instead of the file's")
    one.add_argument("--demo", action="store_true", help="simulate the models: needs no Ollama")
    one.add_argument(
        "--insecure", action="store_true", help="let anybody who can reach the server use it without a key"
    )
    one.set_defaults(do=serve)


def serve(args: argparse.Namespace) -> int:
    from proxy import config_file, logs, port, server, supervisor

    path = path_of(args)
    said = config_file.Overrides(args.host, args.port, args.demo, args.insecure)
    read = config_file.reader(path, said)
    config, source = read()
    logs.set_up(config.log)
    port.allow_files()
    notes = [f"  note: {doubt}" for doubt in doubts(config, source)]

    async def started(running: Running) -> None:
        print(await banner(running, path), *notes, sep="\n", file=sys.stderr, flush=True)

    watch = config_file.Watch(path)
    signal.signal(signal.SIGHUP, lambda *_: watch.hangup())  # until the server handles it, as starting may take long
    try:
        if config.listen.workers > 1:
            return run(supervisor.run(read, watch, said, started))
        run(server.run(read, watch, args.insecure, started))
    except OSError as error:
        print(server.port_is_taken(error, config.listen.host, config.listen.port), file=sys.stderr)
        return 1
    return 0


def migrate(args: argparse.Namespace) -> None:
    from proxy import config_file, server

    names = run(server.migrated(config_file.reader(path_of(args), config_file.Overrides())))
    print(f"up to date: {', '.join(names)}" if names else "nothing in this configuration keeps records")


def top(args: argparse.Namespace) -> None:
    from proxy import top

    top.run(args.url, args.key, args.once)


def work(args: argparse.Namespace) -> int:
    from proxy import worker

    worker.leave_signals()
    return run(worker.run(args.control, args.channel))


class Running(Protocol):
    """A running server, of one process or several."""

    config: Config
    url: str

    async def hosts(self) -> Mapping[str, Mapping[str, str]]:
        """Upstream -> host -> "" if it answers, else why not."""


async def banner(running: Running, path: Path) -> str:
    """What was started, for the operator to read."""
    config: Config = running.config
    found = await running.hosts()
    url = f"{running.url}{config.listen.base_path}/v1"
    lines = [f"GemmaPy Proxy {__version__} listens on {url}   (configuration: {path})"]
    if config.listen.workers > 1:
        lines.append(f"  {config.listen.workers} workers")
    for name, upstream in config.upstreams.items():
        for host, why in found[name].items():
            where = f"simulated, with the models {simulated()}" if upstream.demo else f"{host}, answers"
            lines.append(f"  upstream {name}: {why or where}")
    lines += [f"  chain {chain}" for chain in chains(config)]
    if not is_guarded(config):
        lines.append("  no keys are configured: everybody who reaches this address may use it")
    if all(why for hosts in found.values() for why in hosts.values()):
        lines.append(f"No upstream answers.{way_out(config, found)}")
    return "\n".join(lines)


def simulated() -> str:
    from proxy.upstreams import demo

    return ", ".join(model.name.removesuffix(":latest") for model in demo.CATALOGUE)


def way_out(config: Config, found: Mapping[str, Mapping[str, str]]) -> str:
    """Advice if an Ollama is not running; other problems are already in the lines of their upstreams."""
    tried = [why for name, upstream in config.upstreams.items() if upstream.ollama for why in found[name].values()]
    refused = any("connection refused" in why for why in tried)
    return "  Start Ollama with `ollama serve`, or try things out with --demo." if refused else ""


def chains(config: Config) -> list[str]:
    """Each chain on one line, from the client inwards."""
    if not config.chains:
        return ["none is declared: every endpoint that would ask a model is off"]
    return [f"{route}: " + " -> ".join(["client", *names, "upstream"]) for route, names in config.chains.items()]


def check(args: argparse.Namespace) -> int:
    from proxy import config_file, server

    read = config_file.reader(args.file, config_file.Overrides())
    config, source = asyncio.run(server.checked_config(read))
    check_exposure(config, source, insecure=False)
    for doubt in doubts(config, source):
        print(f"{args.file}: {doubt}", file=sys.stderr)
    print(f"{args.file}: ok")
    for name, upstream in config.upstreams.items():
        print(f"upstream {name}: {', '.join(upstream.urls) or 'simulated'}")
    if config.keys or not is_guarded(config):
        print(f"keys: {len(config.keys) or 'none, everybody on this machine may do everything'}")
    for way in ("accounts", "jwt", "identity_header"):
        if getattr(config, way) is not None:
            print(f"{way}: on")
    print(*(f"chain {chain}" for chain in chains(config)), sep="\n")
    return 0


def doubts(config: Config, source: Source) -> list[str]:
    """Warnings about what is allowed but probably not intended."""
    return [*configuration.doubts(config), *registry.doubts(config, source)]


def refer(args: argparse.Namespace) -> int:
    from proxy import reference

    print(reference.parameters_page() if args.parameters else reference.settings_page(), end="")
    return 0


def schema(args: argparse.Namespace) -> None:
    from proxy import reference

    print(json.dumps(reference.schema(), indent=2))


def simulate(args: argparse.Namespace) -> int:
    from proxy import server
    from proxy.upstreams import demo

    try:
        run(demo.simulate(args.host, args.port, delay=args.delay, load_time=args.load_time))
    except OSError as error:
        print(server.port_is_taken(error, args.host, args.port), file=sys.stderr)
        return 1
    return 0
