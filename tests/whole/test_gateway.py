"""Behind a gateway, and in front of another proxy: paths, addresses, traces, loops, and the SDK's own retries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import openai
import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from plugins.timeouts import TICK
from proxy.edge.calls import deadline
from proxy.edge.exchange import Exchange
from proxy.errors import ConfigError
from proxy.upstreams.demo import Fault, Said, Simulator
from tests.clocks import jump, put_forward
from tests.conftest import ASK, BARE, HI, Running, Start
from tests.whole.asking import asked, dead_url, error_of, streamed, whole

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
RETRY = "plugins: {retry: {attempts: 2, wait: 0}, timeouts: {}}\nchains: {chat: [timeouts, retry]}\n"


async def chat(run: Running, headers: Mapping[str, str], **body: Any) -> Any:
    return await run.http.post(f"{run.url}/v1/chat/completions", json={**ASK, **body}, headers=headers)


def upstream_headers(run: Running) -> Mapping[str, str]:
    """The headers of the last chat request that Ollama received."""
    return next(one.headers for one in reversed(run.ollama.seen) if one.path == "/api/chat" and one.body["messages"])


# --- paths and addresses -----------------------------------------------------------------------------


async def test_every_route_is_served_under_the_base_path(start: Start) -> None:
    async with start(f"{BARE}\nlisten: {{port: 0, base_path: /llm/}}\n") as run:
        base = f"{run.url}/llm"
        async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0) as client:
            assert (await client.chat.completions.create(**ASK)).choices[0].message.content
            assert (await client.models.retrieve("demo")).id
        assert (await run.http.get(f"{base}/healthz")).status == (await run.http.get(f"{run.url}/readyz")).status == 200
        assert (await run.http.get(base)).status == (await run.http.get(f"{base}/")).status == 200
        outside = await error_of(await run.http.get(f"{run.url}/v1/models"), 404)
        assert "every path here begins with /llm (listen.base_path)" in outside["message"]
        assert (await run.http.get(f"{run.url}/llmv1/models")).status == 404


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        ("[]", "203.0.113.9", "127.0.0.1"),
        ("[127.0.0.0/8]", "203.0.113.9", "203.0.113.9"),
        ("[127.0.0.0/8]", "6.6.6.6, 203.0.113.9", "203.0.113.9"),
        ("[127.0.0.0/8, 10.0.0.0/8]", "203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("[127.0.0.0/8]", "nonsense", "127.0.0.1"),
        ("[127.0.0.0/8]", "2001:db8::1", "2001:db8::1"),
        ("[127.0.0.0/8]", "203.0.113.9:51234", "203.0.113.9"),
        ("[127.0.0.0/8]", "6.6.6.6, [2001:db8::1]:51234", "2001:db8::1"),
        ("[192.0.2.1]", "203.0.113.9", "127.0.0.1"),
    ],
)
async def test_the_client_address_is_taken_only_from_a_trusted_gateway(
    start: Start, caplog: pytest.LogCaptureFixture, trusted: str, forwarded: str, client: str
) -> None:
    text = f"{BARE}\nlisten: {{port: 0, trusted_proxies: {trusted}}}\n"
    with caplog.at_level(logging.INFO, "gemmapy.requests"):
        async with start(text) as run:
            headers = {"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https"}
            assert (await chat(run, headers)).status == 200
    told = next(record.told for record in caplog.records if hasattr(record, "told"))
    assert told["client"] == client
    assert told.get("scheme") == ("https" if "127" in trusted else None)


async def test_a_forwarded_request_has_no_admin_rights_by_a_local_address(start: Start) -> None:
    async with start(f"{BARE}\nplugins: {{desk: {{use: 'tests.whole.rigged:Desk'}}}}\n") as run:
        assert (await run.http.get(f"{run.url}/desk/admin")).status == 200
        for path, status in (("/desk/admin", 403), ("/desk/user", 200)):
            response = await run.http.get(run.url + path, headers={"X-Forwarded-For": "127.0.0.1"})
            assert response.status == status


@pytest.mark.parametrize(
    ("network", "told"),
    [("everyone", "neither an address nor a network"), ("127.0.0.1/8", "did you mean '127.0.0.0/8'?")],
)
async def test_an_invalid_network_is_a_configuration_error(start: Start, network: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        async with start(f"{BARE}\nlisten: {{port: 0, trusted_proxies: [{network}]}}\n"):
            pass
    assert "listen.trusted_proxies.0: " in str(caught.value) and told in str(caught.value)


@pytest.mark.parametrize("path", ["llm", "/llm/../x", "/..", "/a//b", "/ä", "/a?b"])
async def test_an_invalid_base_path_is_a_configuration_error(start: Start, path: str) -> None:
    from proxy.errors import ConfigError

    with pytest.raises(ConfigError, match="base_path"):
        async with start(f"{BARE}\nlisten: {{port: 0, base_path: '{path}'}}\n"):
            pass


# --- what is forwarded, and what is not --------------------------------------------------------------


async def test_of_the_clients_headers_only_trace_and_request_id_reach_the_upstream(start: Start) -> None:
    sent = {
        "Authorization": "Bearer canary-key",
        "Cookie": "canary=1",
        "Origin": "http://localhost:3000",
        "Connection": "keep-alive, X-Canary",
        "X-Canary": "canary",
        "X-Request-Id": "req-7",
        "traceparent": PARENT,
        "tracestate": "vendor=1",
        "User-Agent": "canary",
    }
    async with start() as run:
        response = await chat(run, sent)
        assert response.status == 200 and response.headers["x-request-id"] == "req-7"
        headers = upstream_headers(run)
    assert (headers["X-Request-Id"], headers["traceparent"], headers["tracestate"]) == ("req-7", PARENT, "vendor=1")
    assert "canary" not in str(headers) and "Origin" not in headers and "Cookie" not in headers
    assert headers["Host"].startswith("127.0.0.1:")
    ours = {"host", "x-request-id", "via", "traceparent", "tracestate", "content-type", "content-length"}
    assert {name.lower() for name in headers} <= ours


@pytest.mark.parametrize("parent", ["", "00-0-0-0", PARENT.replace("4bf92f35", "00000000")[:-3], f"{PARENT}\tx"])
async def test_an_invalid_traceparent_is_not_forwarded(start: Start, parent: str) -> None:
    async with start() as run:
        assert (await chat(run, {"traceparent": parent, "tracestate": "a=1"})).status == 200
        assert not {"traceparent", "tracestate"} & set(upstream_headers(run))


async def test_redirects_are_not_followed(start: Start) -> None:
    ollama = Simulator(faults=[Fault("status", status=307)])
    async with start(ollama=ollama) as run:
        assert (await error_of(await run.chat(), 502))["code"] == "upstream_server"
        assert len(asked(ollama)) == 1


# --- proxies in a row --------------------------------------------------------------------------------


async def test_a_chain_of_two_proxies_answers_like_one(start: Start) -> None:
    async with start() as inner, start(f"{BARE}\nupstreams: {{next: {{ollama: '{inner.url}'}}}}\n") as outer:
        async with outer.client() as client:
            answer = await client.chat.completions.create(**ASK)
            assert "simulated" in (answer.choices[0].message.content or "")
            assert (await client.embeddings.create(model="demo-embed", input="hi")).data
        stream = await streamed(await outer.chat(stream=True))
        assert stream.done and stream.text() == answer.choices[0].message.content
        assert len(upstream_headers(inner)["Via"].split(", ")) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_loop_of_two_proxies_ends_at_once_with_an_error(
    start: Start, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each proxy is the other's upstream, both retry, and each waits in vain for the other's list of models."""
    async with start(RETRY) as one, start(RETRY) as other:
        for run, to in ((one, other), (other, one)):
            # Each first learns the model from the simulator, then has only the other proxy.
            assert (await run.chat()).status == 200
            run.configure(f"{RETRY}upstreams: {{next: {{ollama: '{to.url}'}}}}\nmodels: {{demo: {{upstream: next}}}}\n")
        for run in (one, other):
            assert await run.server.reload()
        monkeypatch.setattr("proxy.upstreams.host_client.SMALL_REQUEST", 0.1)
        seen = len(one.ollama.seen) + len(other.ollama.seen)
        async with asyncio.timeout(30):
            response = await one.chat(stream=stream)
            text = await response.text()
        assert response.status >= 500 and "error" in text
        assert len(one.ollama.seen) + len(other.ollama.seen) == seen


async def test_a_proxy_that_is_its_own_upstream_answers_loop_detected(start: Start) -> None:
    async with start() as run:
        via = upstream_headers(run)["Via"] if (await run.chat()).status == 200 else ""
        response = await chat(run, {"Via": f"1.1 nginx, {via}"})
        error = await error_of(response, 508)
        assert error["code"] == "loop_detected" and response.headers["x-should-retry"] == "false"
        assert (await chat(run, {"Via": "1.1 nginx"})).status == 200
        mine = via.removeprefix("1.1 ")
        for told in (f"1.0 {mine}", f"1.1 {mine} (a comment), 1.1 nginx", f"HTTP/1.1 {mine} , 1.1 x"):
            assert (await chat(run, {"Via": told})).status == 508
        twice = CIMultiDict([("Via", "1.1 varnish"), ("Via", via)])
        assert (await chat(run, twice)).status == 508
        many = ", ".join(f"1.1 gemmapy-{number:016x}" for number in range(8))
        assert (await error_of(await chat(run, {"Via": many}), 508))["code"] == "loop_detected"


async def test_retries_do_not_multiply_over_a_chain_of_proxies(start: Start) -> None:
    text = "plugins: {retry: {attempts: 3, wait: 0}}\nchains: {chat: [retry]}\n"
    async with start(text, Simulator(faults=[Fault("status", times=99)])) as inner:
        for kind in (f"ollama: '{inner.url}'", f"openai: '{inner.url}/v1'"):
            seen = len(asked(inner.ollama))
            async with start(f"{text}upstreams: {{next: {{{kind}}}}}\n") as outer:
                response = await outer.chat()
                assert response.status == 502 and response.headers["x-should-retry"] == "false"
            assert len(asked(inner.ollama)) - seen == 3


# --- the SDK's habits --------------------------------------------------------------------------------


async def test_the_sdk_does_not_retry_a_call_that_the_server_retried(start: Start) -> None:
    async with start(RETRY, Simulator(faults=[Fault("status", times=99)])) as run, run.client(max_retries=2) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(**ASK)
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert len(asked(run.ollama)) == 2, "two attempts by the server, and no retry by the SDK"


async def test_without_the_plugin_retry_the_sdk_retries(start: Start) -> None:
    async with start(ollama=Simulator(faults=[Fault("status")])) as run, run.client(max_retries=1) as client:
        assert (await client.chat.completions.create(**ASK)).choices
        assert len(asked(run.ollama)) == 2


async def test_retry_after_is_sent_and_the_sdk_may_retry(start: Start) -> None:
    text = f"{BARE}\nplugins: {{no: {{use: 'tests.whole.rigged:Refusing', kind: too_many}}}}\nchains: {{chat: [no]}}\n"
    async with start(text.replace(f"{BARE}\n", "")) as run:
        response = await run.chat()
        assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("7", "7000")
        assert "x-should-retry" not in response.headers


async def test_a_header_has_the_processing_time(start: Start) -> None:
    async with start(ollama=Simulator(load_time=0.05)) as run:
        assert int((await run.chat()).headers["openai-processing-ms"]) >= 50


async def test_the_sdks_timeout_gives_a_504_that_it_does_not_retry(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's timeout becomes the call's deadline, which is a little earlier."""
    monkeypatch.setattr("proxy.edge.calls.EARLIER", 60.0)
    async with start(RETRY, Simulator(faults=[Fault("stall", times=9)])) as run:
        async with run.client(timeout=600, max_retries=3) as client:
            asking = asyncio.ensure_future(client.chat.completions.create(**ASK))
            await run.ollama.until(lambda: run.ollama.running == 1)
            put_forward(run.server.services.clock, 550)
            jump(550)
            with pytest.raises(openai.InternalServerError) as caught:
                await asking
        assert caught.value.response.status_code == 504
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert len(asked(run.ollama)) == 1


@pytest.mark.parametrize("path", ["chat/completions", "embeddings"])
async def test_the_sdks_timeout_is_enforced_without_any_plugin(start: Start, path: str) -> None:
    body = ASK if "chat" in path else {"model": "demo-embed", "input": "x"}
    async with start(ollama=Simulator(faults=[Fault("stall", times=9)])) as run:
        headers = {"x-stainless-read-timeout": "60"}
        asking = asyncio.ensure_future(run.http.post(f"{run.url}/v1/{path}", json=body, headers=headers))
        await run.ollama.until(lambda: run.ollama.running == 1)
        jump(60)
        response = await asking
        assert (await error_of(response, 504))["code"] == "upstream_timeout"
        assert response.headers["x-should-retry"] == "false"
        await run.ollama.until_abandoned(1)


async def test_the_sdks_timeout_does_not_limit_a_stream_that_has_begun(start: Start) -> None:
    long = Said(pieces=("word ",) * 12)
    stall = Fault("stall", after=3, until=(go := asyncio.Event()))
    async with start(RETRY, Simulator(faults=[stall], say=lambda body: long)) as run:
        headers = {"x-stainless-read-timeout": "60"}
        response = await run.http.post(f"{run.url}/v1/chat/completions", json={**ASK, "stream": True}, headers=headers)
        put_forward(run.server.services.clock, 70)
        jump(70)
        await asyncio.sleep(2 * TICK)  # until the deadlines have been checked again
        go.set()
        stream = await streamed(response)
    assert stream.done and stream.text() == "word " * 12


async def test_the_sdks_timeout_counts_from_the_arrival_of_the_request() -> None:
    request = make_mocked_request("POST", "/v1/chat/completions", headers={"x-stainless-read-timeout": "100"})
    exchange = Exchange.of(request)
    exchange.started -= 40  # as if reading the request's files had taken 40 s
    limit, now = deadline(request, exchange), asyncio.get_running_loop().time()
    assert limit is not None and 0 < limit.at - now <= 59


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf", "1e99"])
async def test_an_invalid_timeout_header_is_ignored(start: Start, given: str) -> None:
    async with start(RETRY) as run:
        assert (await whole(await chat(run, {"x-stainless-read-timeout": given})))["choices"]


async def test_the_sdk_may_retry_when_the_upstream_is_unreachable(start: Start) -> None:
    async with start(f"{BARE}\nupstreams: {{gone: {{ollama: '{dead_url()}'}}}}\n") as run:
        response = await run.chat(messages=HI)
        assert response.status == 502 and "x-should-retry" not in response.headers
