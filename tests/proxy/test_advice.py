"""Errors in settings name what was found, what is expected, and what to write instead."""

from __future__ import annotations

import pytest

from proxy import config as configuration
from proxy import registry
from tests.proxy.test_config import problems

CHAINS = "chains: {chat: []}\n"
NO_MAPPING = "this should be a mapping, not a text, such as"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("upstreams: 'http://h'", f"upstreams: {NO_MAPPING} `upstreams: {{local: {{ollama: "),
        ("upstreams: {a: 'http://h'}", f"upstreams.a: {NO_MAPPING} `upstreams: {{local: {{ollama: "),
        ("listen: '0.0.0.0:80'", f"listen: {NO_MAPPING} `listen: {{host: 127.0.0.1, port: 8080}}`"),
        ("keys: [s3cret]", "this should be a mapping, not a list, such as `keys: {alice: '${ALICE_KEY}'}`"),
        ("stores: {a: 'redis://:s3cret@h'}", f"stores.a: {NO_MAPPING} `stores: {{shared: {{redis: "),
        ("database: 'sqlite:///s3cret'", f"database: {NO_MAPPING} `database: {{url: "),
        (
            "plugins: [cache]",
            "this should be a mapping, not a list, such as `plugins: {cache: {ttl: 3600}, retry: {}}`",
        ),
        ("plugins: {limits: {limits: {per: all}}}", "this should be a list, not a mapping; begin each item with `- `"),
        ("plugins: {fallback: {default: a}}", "default: this should be a list, not a text, such as `[a]`"),
        ("plugins: {fallback: {models: {b: 'c, d'}}}", "b: this should be a list, not a text, such as `[c, d]`"),
        ("keys: {a: 1234}", "keys.a: this should be a text, not a number; put it in quotes"),
        ("keys: {a: [s3cret]}", "keys.a: this should be a text, not a list"),
        ("costs: {energy: {watts: {local: 3}}}", "local: this should be a mapping, not a number with busy, idle"),
    ],
)
def test_the_error_for_a_wrong_type_names_the_right_one_and_reveals_no_secret(text: str, told: str) -> None:
    (problem, *_) = problems(f"{CHAINS}{text}\n")
    assert told in problem and "s3cret" not in problem


def test_the_error_for_an_invalid_number_describes_the_setting() -> None:
    (ttl, attempts) = problems(f"{CHAINS}plugins: {{cache: {{ttl: 1h}}, retry: {{attempts: 1.5}}}}\n")
    assert "cache.ttl: this should be a number, not '1h' (Seconds for which an answer is cached" in ttl
    assert "retry.attempts: this should be a whole number, not 1.5 (Maximum tries of a call" in attempts


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("plugins: {cache: {ttl: true}}", "cache.ttl: this should be a number, not true or false (Seconds for which"),
        (
            "plugins: {retry: {attempts: false}}",
            "retry.attempts: this should be a whole number, not true or false (Max",
        ),
        (
            "upstreams: {a: {demo: {}, slots: true}}",
            "a.slots: this should be a whole number, not true or false (Concurrent",
        ),
        ("costs: {energy: {watts: {a: {busy: true}}}}", "a.busy: this should be a number, not true or false"),
        ("models: {a: {keep_alive: true}}", "a.keep_alive: this should be a number, not true or false"),
        ("listen: {port: true}", "listen.port: this should be a whole number, not true or false (TCP port)"),
    ],
)
def test_a_boolean_is_not_a_number(text: str, told: str) -> None:
    assert told in problems(f"{CHAINS}{text}\n")[0]


@pytest.mark.parametrize("ttl", ["60", "'60'", "${TTL}", "'${TTL}'", '"6${ZERO}"'])
def test_a_number_from_the_environment_can_be_quoted_or_not(ttl: str) -> None:
    text = f"chains: {{chat: [cache]}}\nplugins:\n  cache:\n    ttl: {ttl}\n"
    _, source = configuration.read("proxy.yaml", text, registry.problems_of, {"TTL": "60", "ZERO": "0"})
    assert float(source.data["plugins"]["cache"]["ttl"]) == 60


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("port: 80", "port: there is no such setting here; it belongs in `listen: {port: …}`"),
        ("ollama: x", "ollama: there is no such setting here; it belongs in `upstreams: {NAME: {ollama: …}}`"),
        ("costs: {models: {}}", "costs.models: there is no such setting here; it belongs in `prices: {models: …}`"),
        (
            "plugins: {limits: {requests_per_minute: 6}}",
            "there is no such setting here; it belongs in `limits: [{requests_per_minute: …}]`",
        ),
    ],
)
def test_the_error_for_a_setting_at_the_wrong_level_names_the_right_one(text: str, told: str) -> None:
    assert told in problems(f"{CHAINS}{text}\n")[0]


def test_the_error_for_an_unknown_setting_lists_the_existing_ones() -> None:
    (problem, *_) = problems(f"{CHAINS}stores: {{a: {{postgres: x}}}}\n")
    assert problem.endswith("there is no such setting; there are memory, disk, redis, lancedb, timeout")
    (problem,) = problems(f"{CHAINS}costs: {{prices: {{models: {{'*': {{prompt: 1}}}}}}}}\n")
    assert "costs.prices.models.*.prompt: " in problem and "; there are input, output, cached" in problem


def test_the_error_inside_a_union_does_not_mention_the_other_types() -> None:
    (problem,) = problems(f"{CHAINS}costs: {{prices: {{llama: {{input: 1}}}}}}\n")
    assert problem.startswith("proxy.yaml:2: costs.prices.llama: there is no such setting")


def test_the_error_for_plugin_settings_in_a_chain_names_the_right_place() -> None:
    assert problems("chains: {chat: [{cache: {ttl: 10}}]}") == [
        "proxy.yaml:1: chains.chat.0: a chain lists names of plugins; their settings belong under `plugins:`"
    ]


def test_a_misspelled_plugin_in_a_chain_gets_a_suggestion() -> None:
    assert problems("chains: {chat: [cach]}")[0].endswith("'cach' is not under plugins; did you mean 'cache'?")


def test_the_error_for_a_plugin_that_cannot_be_in_a_chain_says_how_to_use_it() -> None:
    (problem,) = problems("plugins: {comparison: {}}\nchains: {chat: [comparison]}")
    assert problem.endswith("'comparison' cannot be in a chain; it only needs to be listed under `plugins`")


def test_probable_mistakes_cause_warnings_and_are_accepted() -> None:
    text = (
        "plugins: {retry: {}, cache: {}, comparison: {}}\nchains: {chat: [cache]}\n"
        "keys: {a: short, b: long-enough-a-key}\n"
        "upstreams: {gpu: {openai: 'http://h:8000'}, x: {openai: 'http://h/v1'}}\n"
    )
    config, source = configuration.read("proxy.yaml", text, registry.problems_of, {})
    assert list(configuration.doubts(config)) == [
        "http://h:8000 of 'gpu' has no path; most servers are asked at http://h:8000/v1",
        "the key of 'a' is short enough to be guessed; `openssl rand -hex 32` makes a better one",
    ]
    assert list(registry.doubts(config, source)) == [
        "'retry' is under `plugins` and in no chain: no call goes through it"
    ]
