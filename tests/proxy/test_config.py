from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from proxy import config as configuration
from proxy import registry
from proxy.config import Config
from proxy.errors import ConfigError
from proxy.yamlfile import Loader, Source

CHAINS = "chains: {chat: []}\n"


def read(text: str, env: Mapping[str, str]) -> tuple[Config, Source]:
    return configuration.read("proxy.yaml", text, registry.problems_of, env)


def problems(text: str, env: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, env or {})
    return caught.value.problems


def test_on_and_no_are_strings() -> None:
    config, _ = configuration.read(
        "proxy.yaml", CHAINS + "keys: {no: x, on: y}\nplugins: {retry: {on: [connect]}}", registry.problems_of, {}
    )
    assert list(config.keys) == ["no", "on"] and config.plugins["retry"] == {"on": ["connect"]}


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "config").glob("*.yaml")), ids=lambda path: path.name
)
def test_both_yaml_loaders_give_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = "odd: {on: no, quoted: '${PORT}', many: [1.5, ~, 0x1F, 2026-01-01]}\nport: ${PORT}\n"
    text = f"{path.read_text()}\n{odd}"
    quick = Source("f", text, {"PORT": "80"})
    monkeypatch.setattr("proxy.yamlfile.Quick", Loader)
    plain = Source("f", text, {"PORT": "80"})
    assert (quick.data, quick.lines, quick.problems) == (plain.data, plain.lines, plain.problems)
    assert quick.data["port"] == 80 and quick.data["odd"]["quoted"] == "80"


def test_all_problems_are_reported_together_with_their_lines() -> None:
    text = "listen:\n  port: 99999\n  hots: x\nupstreams:\n  a: {ollama: 'ftp://x'}\n  b: {}\nchains:\n  chat: []\n"
    assert problems(text) == [
        "proxy.yaml:2: listen.port: Input should be less than or equal to 65535",
        "proxy.yaml:3: listen.hots: there is no such setting; did you mean 'host'?",
        "proxy.yaml:5: upstreams.a.ollama: 'ftp://x' is not an http:// or https:// URL",
        "proxy.yaml:6: upstreams.b: an upstream is one of `ollama: URL`, `openai: URL` and `demo: {}`",
    ]


@pytest.mark.parametrize("port", ["114341", "abc", "0", "-1"])
@pytest.mark.parametrize(
    "place", ["upstreams: {{a: {{ollama: 'http://127.0.0.1:{}'}}}}", "stores: {{a: {{redis: 'redis://r:{}/0'}}}}"]
)
def test_an_invalid_port_is_a_configuration_error(place: str, port: str) -> None:
    (problem,) = problems(CHAINS + place.format(port))
    assert problem.startswith("proxy.yaml:2: ") and problem.endswith("the port of a URL is a number from 1 to 65535")


@pytest.mark.parametrize(
    ("kind", "url", "told"),
    [
        ("ollama", "http://h:1/v1", "an `ollama` URL ends before Ollama's own /api: http://h:1; /v1 belongs"),
        ("ollama", "http://h:1/x/api/", "an `ollama` URL ends before Ollama's own /api: http://h:1/x"),
        ("openai", "http://h/v1/models", "a base URL ends before the endpoints' paths: http://h/v1"),
        ("openai", "http://h/v1/chat/completions", "a base URL ends before the endpoints' paths: http://h/v1"),
        ("openai", "http://h/v1/completions", "a base URL ends before the endpoints' paths: http://h/v1"),
    ],
)
def test_the_error_for_a_wrong_kind_of_url_names_the_right_one(kind: str, url: str, told: str) -> None:
    (problem,) = problems(f"{CHAINS}upstreams: {{a: {{{kind}: ['http://fine/v2', '{url}']}}}}")
    assert problem.startswith(f"proxy.yaml:2: upstreams.a.{kind}: ") and told in problem


@pytest.mark.parametrize(
    ("kind", "url"), [("ollama", "http://h/ollama"), ("openai", "http://h/v1beta/openai"), ("openai", "http://h")]
)
def test_a_url_can_have_a_path(kind: str, url: str) -> None:
    config, _ = read(f"{CHAINS}upstreams: {{a: {{{kind}: '{url}'}}}}", {})
    assert config.upstreams["a"].urls == (url,)


@pytest.mark.parametrize("url", ["http://ex ample", "http://bücher.example:1", "http://h:1/a b", "https://h/\t"])
def test_a_url_with_invalid_characters_is_a_configuration_error(url: str) -> None:
    for kind in ("ollama", "openai"):
        (problem,) = problems(f'{CHAINS}upstreams: {{a: {{{kind}: "{url}"}}}}\n')
        assert (
            problem.startswith(f"proxy.yaml:2: upstreams.a.{kind}: ") and "characters that a URL cannot have" in problem
        )


def test_invalid_yaml_is_an_error_with_its_line() -> None:
    assert problems("chains:\n  chat: [\n") == [
        "proxy.yaml:3: not YAML: expected the node content, but found '<stream end>'"
    ]


@pytest.mark.parametrize("text", ["[]", "text", "3"])
def test_a_file_other_than_a_mapping_is_refused(text: str) -> None:
    assert problems(text)[0].startswith("proxy.yaml:1: the file: ")


def test_a_duplicate_key_is_an_error() -> None:
    assert problems(f"{CHAINS}params: strict\nparams: lenient\n") == ["proxy.yaml:3: params: this key occurs twice"]


def test_environment_variables_fill_scalars_and_cannot_add_structure() -> None:
    text = f'{CHAINS}keys: {{alice: "${{KEY}}"}}\nlisten:\n  port: ${{PORT:-9000}}\n'
    config, _ = read(text, {"KEY": "a: {b}, c"})
    assert config.keys["alice"].get_secret_value() == "a: {b}, c"  # type: ignore[union-attr]
    assert config.listen.port == 9000


def test_the_error_for_an_unquoted_variable_in_braces_says_to_quote_it() -> None:
    assert problems("keys: {a: ${KEY}}\n" + CHAINS)[0].endswith("(put quotes around ${…} inside {…})")


def test_problems_of_every_kind_are_reported_in_the_order_of_their_lines() -> None:
    text = (
        "params: ${A}\nlisten: {port: x}\nmodels:\n  a: {upstream: nowhere}\nplugins:\n  retry: {attemps: 3}\n"
        "  acme: {use: 'acme_none:Guard'}\nkeys: {a: x, b: x}\nchains:\n  chat: [retyr]\n"
    )
    assert problems(text) == [
        "proxy.yaml:1: environment variable A is not set",
        "proxy.yaml:2: listen.port: this should be a whole number, not 'x' (TCP port)",
        "proxy.yaml:6: plugins.retry.attemps: there is no such setting; did you mean 'attempts'?",
        "proxy.yaml:7: plugins.acme: no module is called 'acme_none': is it installed, or on PYTHONPATH?",
        "proxy.yaml:10: chains.chat.0: 'retyr' is not under plugins; did you mean 'retry'?",
    ]


def test_a_key_belongs_to_one_caller() -> None:
    assert problems(CHAINS + "keys: {a: same, b: same, c: ''}") == [
        "proxy.yaml:2: keys.b: this key is also the one of 'a'",
        "proxy.yaml:2: keys.c: this key is empty",
    ]


def test_an_invalid_key_of_a_caller_is_a_clear_error() -> None:
    assert problems(
        CHAINS + "keys:\n  bob: {key: x, roles: admin}\n  eve: {role: admin}\n  mel: {key: y, role: boss}"
    ) == [
        "proxy.yaml:3: keys.bob.roles: there is no such setting; did you mean 'role'?",
        "proxy.yaml:4: keys.eve.key: this setting is required",
        "proxy.yaml:5: keys.mel.role: Input should be 'user' or 'admin'",
    ]


@pytest.mark.parametrize("text", ["", "log: {level: info}", "{}"])
def test_the_error_for_a_file_without_chains_shows_the_minimum(text: str) -> None:
    least = "chains: {chat: [], embeddings: []}"
    told = f"this setting is required; the least is `{least}`, and nothing else need be said"
    assert problems(text) == [f"proxy.yaml:1: chains: {told}"]
    assert list(read(least, {})[0].chains) == ["chat", "embeddings"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("chain: {}", "chain: there is no such setting; did you mean 'chains'?"),
        ("upstreams: {a: {olama: 'http://h'}}", "upstreams.a.olama: there is no such setting; did you mean 'ollama'?"),
        (
            "upstreams: {a: {demo: {dealy: 1}}}",
            "upstreams.a.demo.dealy: there is no such setting; did you mean 'delay'?",
        ),
        ("stores: {a: {disk: {paht: x}}}", "stores.a.disk.paht: there is no such setting; did you mean 'path'?"),
        (
            "models: {a: {xyzzy: 1}}",
            "models.a.xyzzy: there is no such setting; there are alias, upstream, allowed, keep_alive, num_ctx, "
            "shift, num_batch, num_gpu, main_gpu, num_thread, use_mmap, draft_num_predict",
        ),
    ],
)
def test_an_unknown_setting_gets_a_suggestion(text: str, told: str) -> None:
    assert problems(f"{CHAINS}{text}\n")[0] == f"proxy.yaml:2: {told}"


def test_the_error_for_a_plugin_at_the_top_level_names_the_right_place() -> None:
    text = "cache: {ttl: 60}\nretry:\nnothing: {}\n"
    assert problems(f"{CHAINS.replace('[]', '[cache, retry]')}{text}") == [
        "proxy.yaml:2: cache: `cache` is a plugin: put it under `plugins:`",
        "proxy.yaml:3: retry: `retry` is a plugin: put it under `plugins:`",
        f"proxy.yaml:4: nothing: there is no such setting; there are {', '.join(Config.model_fields)}",
    ]
    assert problems(f"{CHAINS}{text}plugins: []\n")[0].endswith("`cache` is a plugin: put it under `plugins:`")


def test_an_unknown_chain_is_an_error_naming_it() -> None:
    (problem,) = problems("chains: {chta: []}")
    assert problem.startswith("proxy.yaml:1: chains.chta: Input should be 'chat', 'completions'")
    assert problem.endswith("; did you mean 'chat'?")


@pytest.mark.parametrize("odd", ["{cache: {ttl: 5}}", "[cache]", "5", "null"])
def test_the_error_for_anything_but_a_name_in_a_chain_says_where_settings_belong(odd: str) -> None:
    found = problems(f"plugins: {{retry: {{}}, cache: {{}}}}\nchains: {{chat: [{odd}, cache, retry]}}")
    advice = "a chain lists names of plugins; their settings belong under `plugins:`"
    assert found[-1] == f"proxy.yaml:2: chains.chat.0: {advice}"
    assert all(one.startswith("proxy.yaml:2: chains.chat.0: ") for one in found)


def test_a_suggestion_never_names_something_invalid() -> None:
    assert problems("plugins:\n  retyr: {}\nchains: {chat: [retry]}") == [
        "proxy.yaml:2: plugins.retyr: no plugin is called 'retyr'; did you mean 'retry'?",
        "proxy.yaml:3: chains.chat.0: 'retry' is not under plugins; declare it there, as `retry: {}`",
    ]


def test_the_error_for_an_unknown_plugin_says_how_to_use_a_custom_one() -> None:
    (problem,) = problems(f"plugins: {{a: {{use: acme_guard}}}}\n{CHAINS}")
    assert problem.endswith("no plugin is called 'acme_guard'; one of your own is named as `use: \"module:Class\"`")


def test_a_missing_variable_is_reported_once() -> None:
    text = "keys:\n  a: ${K}\nplugins:\n  retry:\n    attempts: ${N}\n    wait: ${N}\n" + CHAINS
    assert problems(text) == [
        "proxy.yaml:2: environment variable K is not set",
        "proxy.yaml:5: environment variable N is not set (also on line 6)",
    ]


@pytest.mark.parametrize("module", ["plugins.mine", "proxy.mine"])
def test_a_custom_module_inside_the_servers_packages_is_a_clear_error(module: str) -> None:
    (problem,) = problems(f"plugins: {{a: {{use: '{module}:Mine'}}}}\n{CHAINS}")
    assert problem.endswith("`plugins` and `proxy` are the server's own packages, so choose another name")


def test_all_unset_variables_are_reported_with_their_lines() -> None:
    assert problems("params: ${A}\nkeys:\n  b: ${B}\n" + CHAINS) == [
        "proxy.yaml:1: environment variable A is not set",
        "proxy.yaml:3: environment variable B is not set",
    ]


def test_an_empty_variable_uses_the_default() -> None:
    config, _ = configuration.read(
        "proxy.yaml", CHAINS + "listen: {port: '${PORT:-7}'}", registry.problems_of, {"PORT": ""}
    )
    assert config.listen.port == 7


def test_aliases_and_upstreams_of_models_must_exist() -> None:
    text = CHAINS + "models:\n  a: {alias: b}\n  b: {alias: c}\n  d: {upstream: nowhere}\n"
    assert problems(text) == [
        "proxy.yaml:3: models.a.alias: 'b' is an alias itself",
        "proxy.yaml:5: models.d.upstream: no upstream is called 'nowhere'",
    ]


@pytest.mark.parametrize(("given", "fine"), [("10m", True), ("-1s", True), (30, True), ("10", False), ("soon", False)])
def test_keep_alive_accepts_what_ollama_accepts(given: object, fine: bool) -> None:
    text = CHAINS + f"models: {{m: {{keep_alive: {given!r}}}}}"
    if fine:
        read(text, {})
    else:
        assert "neither seconds nor a duration" in problems(text)[0]


def test_an_unreadable_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        configuration.load(tmp_path / "nothing.yaml", registry.problems_of)


def test_a_key_is_never_shown_by_the_configuration() -> None:
    config, _ = configuration.read(
        "proxy.yaml", CHAINS + "keys: {a: canary1, b: {key: canary2, role: admin}}", registry.problems_of, {}
    )
    assert "canary" not in repr(config) and "canary" not in config.model_dump_json()


def test_the_file_comes_from_the_environment_the_folder_or_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert configuration.default_path({}).name == "proxy.yaml" and configuration.default_path({}).exists()
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "proxy.yaml").write_text(CHAINS)
    assert configuration.default_path({}) == Path("config/proxy.yaml")
    assert configuration.default_path({"GEMMAPY_CONFIG": "/etc/mine.yaml"}) == Path("/etc/mine.yaml")


@pytest.mark.parametrize("name", ["proxy.yaml", "minimal.yaml", "demo.yaml"])
def test_the_packaged_files_are_valid(name: str) -> None:
    configuration.load(configuration.packaged(name), registry.problems_of, {})
