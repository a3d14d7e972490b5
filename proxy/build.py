"""Builds a running pipeline from a configuration and the services; the composition root."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from secrets import token_bytes
from typing import TYPE_CHECKING, Final

from aiohttp import web

from proxy.chain import compose
from proxy.config import Config, Demo, Upstream
from proxy.costing import book_of
from proxy.edge import ollama as ollama_edge
from proxy.edge import openai as openai_edge
from proxy.edge.admission import Admission
from proxy.edge.attachments import Attachments
from proxy.edge.calls import ChainInputs
from proxy.edge.chats import Chats
from proxy.edge.exchange import exchange_of
from proxy.edge.front import FrontConfig
from proxy.edge.gateway import Gateways
from proxy.edge.health import Health
from proxy.edge.hosts import Hosts
from proxy.edge.images import Images
from proxy.edge.me import Me
from proxy.edge.model_lists import Shown
from proxy.edge.ollama_writes import OllamaWrites
from proxy.edge.prompt import Prompt
from proxy.edge.request_reader import HttpRequestReader
from proxy.edge.responses import Responses
from proxy.edge.unknown_paths import UnknownPaths
from proxy.edge.writer import Writer
from proxy.errors import Busy, ConfigError, NotFound
from proxy.host import Host, Services
from proxy.identity import Guard, Verifier
from proxy.live import Pipeline, Router
from proxy.models import Offers
from proxy.optional import accounts_api, accounts_of, database_of, demo_url, tokens_of
from proxy.registry import build_plugins, in_order
from proxy.sql.feature import Feature
from proxy.stores.registry import OpenStore, Stores
from proxy.storing import kinds, log_unwritable
from proxy.types import Call, Caller, Endpoints, Handler, Reply, Route
from proxy.upstreams.catalogue import Catalogue, ModelRules
from proxy.upstreams.cooldown_sharing import CooldownSharing
from proxy.upstreams.imports import Importer
from proxy.upstreams.members import Member
from proxy.upstreams.ollama import Ollama
from proxy.upstreams.openai import OpenAI
from proxy.upstreams.pool import Pool
from proxy.wire.openai_messages import Limits
from proxy.yamlfile import Source

if TYPE_CHECKING:
    from proxy.sql.database import Database

PATIENCE: Final = 30.0
"""Seconds to wait for a database that is still starting."""


class Assembly:
    """The parts of one pipeline, connected with each other but not yet opened."""

    def __init__(
        self, config: Config, source: Source, services: Services, urls: Mapping[str, Sequence[str]], stores: Stores
    ) -> None:
        """urls: the addresses of each upstream's hosts.  Raises ConfigError."""
        self.config = config
        self.source = source
        self.http = services.http
        rules = ModelRules(config.models)
        self.pools = {
            name: self.pool(name, [self.host(url, upstream, rules, services) for url in urls[name]], services, stores)
            for name, upstream in config.upstreams.items()
        }
        self.catalogue = Catalogue(rules, self.pools, config.upstreams)
        self.chains: dict[str, Handler] = {}
        self.writer = Writer(self.send, config.streams)
        self.images = Images(config.requests)
        self.attachments = Attachments(config.requests.max_bytes, config.requests.max_image_bytes)
        self.requests = HttpRequestReader(config.requests, self.images, self.attachments, config.listen.base_path)
        self.database = partial(database_of, config.database, services)
        self.accounts = accounts_of(config, services, self.database)
        self.tokens = tokens_of(config, services)
        host = self.lent(services, stores)
        self.admission = Admission(self.catalogue, host)
        self.plugins = build_plugins(config, source, host)
        self.caller_data, self.adopting, self.availability = host.caller_data, host.adopting, host.availability
        for route, names in config.chains.items():
            plugins = {name: self.plugins[name] for name in names}
            self.chains[route] = compose(plugins, self.catalogue)
            self.admission.note(route, plugins.values())

    def lent(self, services: Services, stores: Stores) -> Host:
        """The Host that plugins are given."""
        prices = book_of(self.config.costs, self.config.upstreams, self.source)
        return Host(
            services,
            self.send,
            self.answer,
            self.catalogue,
            self.requests,
            stores,
            price=prices.cost,
            prices=prices,
            open_database=self.database,
            workers=self.config.listen.workers,
            imports=Importer(services.http, self.catalogue, self.pools, services.worker_info.server),
            admit=self.admit,
            chat=Chats(self.config, self.images, self.catalogue, self.own).call,
            stream=self.writer.stream,
            files=self.attachments.file_access,
        )

    def host(self, url: str, upstream: Upstream, rules: ModelRules, services: Services) -> Member:
        strict = self.config.params == "strict"
        if upstream.openai:
            return OpenAI(url, upstream, services, strict)
        return Ollama(url, upstream, services, rules.pins, strict)

    def pool(self, name: str, hosts: Sequence[Member], services: Services, stores: Stores) -> Pool:
        settings = self.config.upstreams[name]
        if settings.share is None:
            return Pool(name, hosts, settings, services)
        sharing = CooldownSharing(stores.keyvalue(settings.share), services.background, services.clock)
        return Pool(name, hosts, settings, services, sharing)

    def send(self, call: Call) -> Awaitable[Reply]:
        """Send the call through the chain of its route.  Raises NotFound if there is none, and Denied, before any
        plugin can answer, for a model that the caller's key may not use."""
        self.admission.model(call)
        if chain := self.chains.get(call.route):
            return chain(call)
        raise NotFound(f"This server has no chain '{call.route}'.", code="route_off")

    async def answer(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        self.admit(call, exchange_of(request).caller)
        return await self.writer.answer(request, call, exchange_of(request).style(call.model), {})

    def admit(self, call: Call, caller: Caller) -> None:
        self.admission.caller(call, caller)

    def features(self) -> list[Feature]:
        """The features that have tables in the database."""
        own = [] if self.accounts is None else [self.accounts.tables]
        return own + [plugin.tables for plugin in self.plugins.values() if hasattr(plugin, "tables")]

    def own(self) -> dict[str, ChainInputs]:
        """By chain, the request fields and headers that its plugins declared as theirs."""
        declared = ("fields", "headers", "brings", "flags")
        return {
            route: ChainInputs(self.admit, self.config, *(self.declared(names, what) for what in declared))
            for route, names in self.config.chains.items()
        }

    def declared(self, names: Sequence[str], what: str) -> frozenset[str]:
        return frozenset().union(*(getattr(self.plugins[name], what, ()) for name in names))

    def mounted(self) -> Iterator[Route]:
        """The endpoints of plugins.  Raises ConfigError if two plugins have the same one."""
        owners: dict[tuple[str, str], str] = {}
        for name, plugin in self.plugins.items():
            for route in plugin.routes() if isinstance(plugin, Endpoints) else ():
                first = owners.setdefault((route.method, route.path), name)
                if first != name:
                    message = (
                        f"'{first}' and '{name}' would both answer {route.method} {route.path}: there can be only one "
                        "plugin of this kind, which may be in several chains"
                    )
                    raise ConfigError([self.source.problem(("plugins", name), message)])
                yield route

    def shown(self) -> Shown:
        """Lists models, including the names under which plugins of the chain `chat` answer."""
        plugins = [self.plugins[name] for name in self.config.chains.get("chat", ())]
        return Shown(self.catalogue, [one for one in plugins if isinstance(one, Offers)])

    def guard(self, gateways: Gateways, services: Services) -> Guard:
        verifiers: list[Verifier] = [one for one in (self.accounts, self.tokens) if one is not None]
        secret = services.process_state("identity secret", partial(token_bytes, 32))
        return Guard(self.config, verifiers, gateways.trusts, secret)

    def router(self, services: Services) -> Router:
        bounds = self.config.requests
        limits = Limits(bounds.max_choices, bounds.max_depth, bounds.max_image_bytes, bounds.max_inputs)
        images, own, attachments = self.images, self.own(), self.attachments
        shown, several = self.shown(), self.config.listen.workers > 1 or self.config.database.is_shared
        openai = openai_edge.OpenAI(
            self.config, self.send, self.writer, self.catalogue, images, attachments, own, limits, shown
        )
        ollama = ollama_edge.Ollama(self.config, self.send, self.writer, self.catalogue, own, limits, shown)
        writes = [] if self.config.writes is None else OllamaWrites(self.http, self.pools[self.config.writes]).routes()
        routes: list[Route] = [
            *openai.routes(),
            *Responses(self.config, self.writer, images, attachments, own, limits).routes(),
            *ollama.routes(),
            *Prompt(self.config, self.writer, own, limits).routes(),
            *writes,
            *Health(services.readiness, self.catalogue.alive, self.availability).routes(),
            *Hosts(self.pools).routes(),
            *Me(self.caller_data, self.requests, several).routes(),
        ]
        if self.accounts is not None:
            routes += accounts_api(self.accounts, self.requests)
        return Router([*routes, *self.mounted()], self.config.listen.base_path)


async def build(config: Config, source: Source, services: Services) -> Pipeline[FrontConfig]:
    """If the configuration is wrong, closes everything it has opened and raises ConfigError."""
    urls = {
        name: upstream.urls or [await demo_url(services, name, upstream.demo or Demo())]
        for name, upstream in config.upstreams.items()
    }
    stores = stores_of(config, services)
    try:
        assembly = Assembly(config, source, services, urls, stores)
        router = assembly.router(services)
        gateways = Gateways(config.listen.trusted_proxies)
        front_config = FrontConfig(
            assembly.guard(gateways, services),
            config.requests.max_bytes,
            2 * config.streams.slow_reader,  # so that a slow client still reads why its stream ends
            gateways,
            UnknownPaths(config, router.routes),
            assembly.pools,
            assembly.catalogue.broken_aliases,
            config.identity_headers,
        )
        return Pipeline(router, front_config, await opened(assembly, stores))
    except BaseException:
        await stores.aclose()
        raise


def stores_of(config: Config, services: Services) -> Stores:
    return Stores(kinds(config.stores, services.clock), services.process_state("stores", dict[str, OpenStore]))


def check(config: Config, source: Source, services: Services) -> Assembly:
    """Check everything that `build` checks, without starting anything.  Raises ConfigError."""
    urls = {name: upstream.urls or ["http://demo"] for name, upstream in config.upstreams.items()}
    assembly = Assembly(config, source, services, urls, stores_of(config, services))
    assembly.router(services)
    return assembly


async def migrate(config: Config, source: Source, services: Services) -> list[str]:
    """Bring every table in use up to date; gives the names of the features.  Raises ConfigError."""
    assembly = check(config, source, services)
    await migrated(assembly)
    return [feature.name for feature in assembly.features()]


async def opened(assembly: Assembly, stores: Stores) -> AsyncExitStack:
    """Open what must be open before the first call.  If that fails, everything is closed again."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(stores.aclose)
        log_unwritable(stores)
        await migrated(assembly)
        for identity in (assembly.accounts, assembly.tokens):
            if identity is not None:
                await stack.enter_async_context(identity)
        for plugin in in_order(assembly.plugins.values()):
            if isinstance(plugin, AbstractAsyncContextManager):
                await stack.enter_async_context(plugin)
        for pool in assembly.pools.values():  # last, because waiting calls use it at once and the above may fail
            pool.open()
            stack.callback(pool.close)
        for adopt in assembly.adopting:
            adopt()
        return stack.pop_all()


async def migrated(assembly: Assembly) -> None:
    """Bring the tables of every feature in use up to date.  Raises ConfigError if the database stays unavailable."""
    for feature in assembly.features():
        try:
            async with asyncio.timeout(PATIENCE):
                await patiently(assembly.database(), feature)
        except (Busy, TimeoutError) as error:  # Busy: a DatabaseAway, which is not imported without a database
            name = assembly.database().name
            told = error.why if isinstance(error, Busy) else f"the database {name} does not answer"
            raise ConfigError([f"{told}; start it, or name another one: `database: {{url: …}}`"]) from error


async def patiently(database: Database, feature: Feature) -> None:
    """Migrate, and try again while the database is unavailable, as it may be starting together with this server."""
    from proxy.sql.database import DatabaseAway

    while True:
        try:
            return await database.migrate(feature)
        except DatabaseAway:  # already logged
            await asyncio.sleep(1)
