"""The simulator goes wrong as told, and notices who leaves."""

import asyncio
import json

import aiohttp
import pytest

from proxy.upstreams.demo import Fault, Simulator
from proxy.upstreams.demo.faults import Kind

from .asking import Json, asking, contents, user

HI: Json = {"model": "demo", "messages": user("Hi")}


@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [
        (Fault("status", status=503, message="busy"), 503, "busy"),
        (Fault("status", status=503), 503, "server busy, please try again.  maximum"),
        (Fault("error_line"), 500, "model runner has unexpectedly stopped"),
        (Fault("nested"), 400, '{"error":{"code":400'),
        (Fault("load_failure"), 500, "llama-server process has terminated"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_trouble_before_the_first_line_has_a_status(fault: Fault, status: int, text: str, stream: bool) -> None:
    async with asking(Simulator(faults=[fault])) as client:
        found, error = await client.error("/api/chat", **HI, stream=stream)
        assert found == status and error.startswith(text)
        assert (await client.ask("/api/chat", **HI))[0] == 200


@pytest.mark.parametrize("kind", ["error_line", "status", "nested"])
async def test_trouble_after_some_lines_is_one_more_line(kind: Kind) -> None:
    async with asking(Simulator(faults=[Fault(kind, after=2, message="broken")])) as client:
        lines = await client.lines("/api/chat", **HI)
    assert len(lines) == 3 and lines[-1] == {"error": "broken"}


async def test_an_answer_can_end_without_its_last_line() -> None:
    simulator = Simulator(faults=[Fault("eof", after=2, times=2)])
    async with asking(simulator) as client:
        lines = await client.lines("/api/chat", **HI)
        _, document = await client.ask("/api/chat", **HI)
    assert [line["done"] for line in lines] == [False, False]
    assert document["done"] is False and contents(lines) == document["message"]["content"]
    assert (simulator.started, simulator.finished, simulator.abandoned) == (2, 0, 0)


@pytest.mark.parametrize("after", [0, 2])
async def test_a_connection_can_be_reset(after: int) -> None:
    simulator = Simulator(faults=[Fault("reset", after=after)])
    async with asking(simulator) as client:
        with pytest.raises(aiohttp.ClientError):
            await client.lines("/api/chat", **HI)
    assert (simulator.started, simulator.abandoned, simulator.running) == (1, 0, 0)


@pytest.mark.parametrize(("after", "stream"), [(0, True), (2, True), (0, False)])
async def test_garbage_is_not_json(after: int, stream: bool) -> None:
    async with asking(Simulator(faults=[Fault("garbage", after=after)])) as client:
        status, raw = await client.raw("/api/chat", **HI, stream=stream)
    lines = raw.splitlines()
    assert status == 200 and len(lines) == after + 1
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[-1])


async def test_a_line_can_be_megabytes_long() -> None:
    async with asking(Simulator(faults=[Fault("long_line", after=1, size=3_000_000)])) as client:
        lines = await client.lines("/api/chat", **HI)
    assert len(lines[1]["message"]["content"]) == 3_000_000 and lines[-1]["done"]


async def test_a_fault_waits_for_its_path_and_spares_preloads() -> None:
    simulator = Simulator(faults=[Fault("status", path="/api/embed"), Fault("status", path="/api/chat")])
    async with asking(simulator) as client:
        assert (await client.ask("/api/chat", model="demo"))[0] == 200
        assert (await client.ask("/api/chat", **HI))[0] == 500
        assert [fault.path for fault in simulator.faults] == ["/api/embed"]
        assert (await client.ask("/api/embed", model="demo-embed", input="Hi"))[0] == 500
        simulator.faults.append(Fault("status", path="/api/tags", status=502))
        assert "error" in await client.get("/api/tags")


@pytest.mark.parametrize("kind", ["eof", "garbage", "reset"])
async def test_a_document_can_be_broken_too(kind: Kind) -> None:
    async with asking(Simulator(faults=[Fault(kind)])) as client:
        with pytest.raises((json.JSONDecodeError, aiohttp.ClientError)):
            await client.ask("/api/embed", model="demo-embed", input="Hi")


async def test_lines_can_be_split_at_any_byte() -> None:
    async with asking(Simulator(split=7)) as client:
        pieces = await client.packets("/api/chat", model="demo", messages=user("ü" * 20))
    assert len(pieces) > 2
    assert contents([json.loads(line) for line in b"".join(pieces).splitlines()])


@pytest.mark.parametrize("after", [0, 2])
async def test_a_client_that_leaves_is_noticed(after: int) -> None:
    simulator = Simulator(faults=[Fault("stall", after=after)])
    async with asking(simulator) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await client.lines("/api/chat", **HI)
        await simulator.until_abandoned()
        assert (simulator.started, simulator.finished, simulator.abandoned) == (1, 0, 1)
        assert simulator.running == 0


async def test_waiting_for_somebody_to_leave_has_an_end() -> None:
    with pytest.raises(TimeoutError):
        await Simulator().until_abandoned(within=0.01)


async def test_a_stall_ends_in_the_rest_of_the_answer() -> None:
    async with asking(Simulator(faults=[Fault("stall", after=1, seconds=0.01)])) as client:
        assert (await client.lines("/api/chat", **HI))[-1]["done"]


async def test_a_delay_lies_between_lines() -> None:
    async with asking(Simulator(delay=0.001)) as client:
        _, document = await client.ask("/api/chat", **HI)
    assert document["eval_duration"] > 10_000_000
