from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from proxy import config as configuration
from proxy import registry
from proxy.config import Config
from proxy.config_file import Overrides
from proxy.errors import ConfigError, Denied, Unauthenticated
from proxy.identity import Guard, check_exposure, is_loopback
from proxy.types import Caller, Who
from proxy.yamlfile import Source

KEYS = "keys: {alice: a-key, ops: {key: o-key, role: admin}}\n"


def found(text: str) -> tuple[Config, Source]:
    return configuration.read("proxy.yaml", f"{text}chains: {{chat: []}}\n", registry.problems_of, {})


def config(text: str = "") -> Config:
    return found(text)[0]


def request(**headers: str) -> web.BaseRequest:
    return make_mocked_request("GET", "/", headers={name.replace("_", "-"): value for name, value in headers.items()})


def admitted(guard: Guard, asking: web.BaseRequest, who: Who) -> Caller:
    """The caller, which for a key of the file is known without awaiting anything."""
    caller = guard.admit(asking, who, "127.0.0.1")
    assert isinstance(caller, Caller)
    return caller


@pytest.mark.parametrize(
    ("header", "who", "caller"),
    [("Bearer a-key", "user", "alice"), ("bearer o-key", "admin", "ops"), ("Bearer  a-key ", "user", "alice")],
)
def test_a_key_names_its_caller(header: str, who: Who, caller: str) -> None:
    assert admitted(Guard(config(KEYS)), request(Authorization=header), who).name == caller


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer a-ke", "Bearer a-keyy", "Basic a-key", "a-key"])
def test_anything_but_the_exact_key_is_refused(header: str) -> None:
    headers = {"Authorization": header} if header else {}
    with pytest.raises(Unauthenticated) as caught:
        Guard(config(KEYS)).admit(request(**headers), "user", "127.0.0.1")
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("path", "headers", "told"),
    [
        ("/", {}, "send it as 'Authorization: Bearer KEY'."),
        ("/", {"Authorization": "a-key"}, "'Authorization' must be 'Bearer KEY'."),
        ("/", {"Authorization": "Basic a-key"}, "'Authorization' must be 'Bearer KEY'."),
        ("/", {"api-key": "a-key"}, "send it as 'Authorization: Bearer KEY', not in the header 'api-key'."),
        ("/", {"X-Api-Key": "a-key"}, "send it as 'Authorization: Bearer KEY', not in the header 'x-api-key'."),
        ("/?api_key=a-key", {}, "send it as 'Authorization: Bearer KEY', not in the URL."),
    ],
)
def test_the_error_for_a_key_at_the_wrong_place_names_the_right_header(
    path: str, headers: dict[str, str], told: str
) -> None:
    with pytest.raises(Unauthenticated) as caught:
        Guard(config(KEYS)).admit(make_mocked_request("GET", path, headers=headers), "user", "127.0.0.1")
    assert str(caught.value) == f"No API key was given: {told}"


def test_a_users_key_gives_no_access_to_admin_routes() -> None:
    with pytest.raises(Denied):
        Guard(config(KEYS)).admit(request(Authorization="Bearer a-key"), "admin", "127.0.0.1")


def test_public_routes_need_no_key() -> None:
    assert admitted(Guard(config(KEYS)), request(), "public").name == "anonymous"


def test_without_keys_everybody_on_this_machine_is_admin_and_nobody_elsewhere() -> None:
    assert admitted(Guard(config()), request(), "admin").name == "anonymous"
    with pytest.raises(Denied):
        Guard(config()).admit(request(), "admin", "192.168.1.2")
    public = Guard(config("listen: {host: 0.0.0.0}\n"))
    assert admitted(public, request(), "user").name == "anonymous"
    with pytest.raises(Denied):
        public.admit(request(), "admin", "127.0.0.1")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.com"])
def test_a_public_address_requires_keys_or_insecure(host: str) -> None:
    exposed, source = found(f"\nlisten:\n  host: '{host}'\n")
    with pytest.raises(ConfigError, match=r"^proxy\.yaml:3: listen\.host: .*--insecure"):
        check_exposure(exposed, source, insecure=False)
    check_exposure(exposed, source, insecure=True)
    check_exposure(*found(f"{KEYS}listen: {{host: '{host}'}}\n"), insecure=False)


@pytest.mark.parametrize(
    "way",
    [
        "accounts: {}",
        "jwt: {jwks: 'https://id.example.com/keys', issuer: a, audience: b}",
        "identity_header: {}",
    ],
)
def test_every_kind_of_authentication_protects_a_public_address(way: str) -> None:
    guarded, source = found(f"{way}\nlisten: {{host: 0.0.0.0, trusted_proxies: [10.0.0.1]}}\n")
    check_exposure(guarded, source, insecure=False)
    with pytest.raises(Unauthenticated):
        Guard(guarded).admit(request(), "user", "127.0.0.1")


def test_the_error_for_an_address_of_the_command_line_names_no_line_of_the_file() -> None:
    local, source = found("listen: {host: 127.0.0.1}\n")
    with pytest.raises(ConfigError, match=r"^0\.0\.0\.0 is not a loopback address"):
        check_exposure(Overrides(host="0.0.0.0").over(local), source, insecure=False)


@pytest.mark.parametrize(
    ("headers", "welcome"),
    [
        ({"Host": "127.0.0.1:8080"}, True),
        ({"Host": "localhost"}, True),
        ({"Host": "[::1]:8080"}, True),
        ({"Host": "proxy.lan:8080"}, True),
        ({"Host": "evil.example"}, False),
        ({"Host": "localhost.evil.example"}, False),
        ({"Host": "127.0.0.1", "Origin": "https://evil.example"}, False),
        ({"Host": "127.0.0.1", "Origin": "null"}, False),
        ({"Host": "127.0.0.1", "Origin": "http://localhost:3000"}, True),
        ({"Host": "127.0.0.1", "Origin": "https://app.example.com"}, True),
    ],
)
def test_a_foreign_page_cannot_reach_a_server_without_keys(headers: dict[str, str], welcome: bool) -> None:
    guard = Guard(config("web: {origins: ['https://app.example.com'], hosts: [proxy.lan]}\n"))
    if welcome:
        guard.check_site(request(**headers))
    else:
        with pytest.raises(Denied):
            guard.check_site(request(**headers))


@pytest.mark.parametrize(
    ("host", "yes"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("a.localhost", True), ("10.0.0.1", False), ("", False)],
)
def test_loopback_addresses_are_recognised(host: str, yes: bool) -> None:
    assert is_loopback(host) is yes


WILD = "web: {origins: ['https://*.Example.com', 'http://*.dev.example:8443', 'http://*.localhost:3000']}\n"


@pytest.mark.parametrize(
    ("origin", "welcome"),
    [
        ("https://app.example.com", True),
        ("https://a.b-c.example.com", True),
        ("http://a.dev.example:8443", True),
        ("http://app.localhost:3000", True),
        ("https://example.com", False),
        ("https://.example.com", False),
        ("https://-.example.com.evil.org", False),
        ("https://app.example.com.evil.org", False),
        ("https://evilexample.com", False),
        ("https://appxexample.com", False),
        ("https://app.examplexcom", False),
        ("http://app.example.com", False),
        ("https://app.example.com:8443", False),
        ("http://a.dev.example", False),
        ("https://evil.org/.example.com", False),
        ("https://evil.org#.example.com", False),
        ("https://evil.org@app.example.com", False),
        ("https://evil.org:80.example.com", False),
        ("https://app.example.com/", False),
        ("https://app.example.com\n", False),
        ("https://app.example.com https://evil.org", False),
        ("https://APP.example.com", False),
        ("https://*.example.com", False),
        ("null", False),
        ("", False),
    ],
)
def test_a_wildcard_matches_subdomains_only(origin: str, welcome: bool) -> None:
    guard = Guard(config(WILD))
    assert guard.welcome(origin) is welcome
    told = guard.cors(request(Origin=origin))
    assert told.get("Access-Control-Allow-Origin") == (origin if welcome else None) and told["Vary"] == "Origin"


@pytest.mark.parametrize(
    "origin",
    [
        "https://*", "https://*.com", "https://a.*.com", "https://*example.com", "*.example.com", "https://*.*.example.com",
        "https://*.10.0.0.1", "https://app.example.com/", "https://app.example.com/x", "app.example.com", "null", "",
        "https://a:b@example.com", "https://*.example.com:*", "https://*.example.com/",
    ],
)  # fmt: skip
def test_an_origin_that_no_browser_sends_is_a_configuration_error(origin: str) -> None:
    with pytest.raises(ConfigError, match="origins"):
        config(f"web: {{origins: ['{origin}']}}\n")


@pytest.mark.parametrize(
    "origin", ["*", "http://localhost:3000", "http://[::1]:80", "app://obsidian.md", "HTTPS://A.example"]
)
def test_origins_of_every_kind_are_accepted(origin: str) -> None:
    assert Guard(config(f"web: {{origins: ['{origin}']}}\n")).welcome(origin.lower())


def test_cors_is_off_until_an_origin_is_listed() -> None:
    asking: Any = request(Origin="https://app.example.com")
    assert Guard(config()).cors(asking) == {}
    guard = Guard(config("web: {origins: ['https://app.example.com']}\n"))
    for other in (request(), request(Origin="https://other.example.com")):
        assert guard.cors(other) == {"Vary": "Origin"}  # so that HTTP caches do not serve it to other origins
    allowed = guard.cors(asking)
    assert allowed["Access-Control-Allow-Origin"] == "https://app.example.com"
