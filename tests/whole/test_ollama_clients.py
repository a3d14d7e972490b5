"""The stock Ollama clients against a running server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import ollama
import pytest
from langchain_core.messages import AIMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings
from pydantic import BaseModel

from proxy.upstreams.demo import Fault, Said, Simulator
from tests.conftest import ASK, BARE, HI, Running, Start
from tests.whole.asking import PNG, asked, function


def client(run: Running, **options: Any) -> ollama.AsyncClient:
    return ollama.AsyncClient(host=run.url, **options)


async def test_a_chat_has_the_same_answer_whole_and_streamed(start: Start) -> None:
    async with start() as run, client(run) as native:
        whole = await native.chat("demo", HI)
        stream = await native.chat("demo", HI, stream=True)
        pieces = [part async for part in stream]
        assert whole.message.content == "".join(part.message.content or "" for part in pieces)
        assert [part.done for part in pieces] == [False] * (len(pieces) - 1) + [True]
        last = pieces[-1]
        assert (last.done_reason, last.eval_count) == ("stop", whole.eval_count)
        assert last.prompt_eval_count and last.total_duration and last.eval_duration


async def test_the_synchronous_client_works_too(start: Start) -> None:
    async with start() as run:
        with ollama.Client(host=run.url) as sync:
            answer = await asyncio.to_thread(sync.chat, "demo", HI)
            generated = await asyncio.to_thread(sync.generate, "demo", "hello")
        assert "simulated" in (answer.message.content or "") and "simulated" in generated.response


async def test_the_key_comes_from_the_environment_or_from_the_clients_headers(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"Authorization": "Bearer secret"}
    async with start(f"{BARE}\nkeys: {{alice: secret}}\n") as run:
        async with client(run) as without:
            with pytest.raises(ollama.ResponseError):
                await without.chat("demo", HI)
        await check_both_clients(run, headers=headers)
        monkeypatch.setenv("OLLAMA_API_KEY", "secret")
        await check_both_clients(run)


async def check_both_clients(run: Running, **options: Any) -> None:
    """Check that Ollama's and LangChain's client get an answer with these options for their HTTP client."""
    async with client(run, **options) as native:
        assert (await native.chat("demo", HI)).message.content
    model = ChatOllama(base_url=run.url, model="demo", client_kwargs=options)
    assert (await model.ainvoke("hi")).content
    await close_langchain(model)


async def close_langchain(model: Any) -> None:
    """Close LangChain's HTTP clients, which are not typed."""
    model._client.close()
    await model._async_client.close()


async def test_one_chain_serves_both_dialects(start: Start) -> None:
    async with start() as run, client(run) as native, run.client() as openai:
        first = await native.chat("demo", HI, options={"temperature": 0.5, "seed": 3, "num_ctx": 99})
        other = await openai.chat.completions.create(**ASK, temperature=0.5, seed=3)
        assert first.message.content == other.choices[0].message.content
        asked = [one.body for one in run.ollama.seen if one.path == "/api/chat" and one.body["messages"]]
        assert asked[0] == asked[1], "the same question in both dialects"
        assert run.ollama.reloads == 0


async def test_tools_thinking_and_formats_have_ollamas_shapes(start: Start) -> None:
    class City(BaseModel):
        name: str
        people: int

    async with start() as run, client(run) as native:
        call = await native.chat("demo", [{"role": "user", "content": "weather in Oslo"}], tools=[function("weather")])
        assert call.message.tool_calls
        made = call.message.tool_calls[0]
        assert made.function.name == "weather" and isinstance(made.function.arguments, dict)
        history: list[Any] = [
            {"role": "user", "content": "weather in Oslo"},
            call.message,
            {"role": "tool", "tool_name": "weather", "content": "snow"},
        ]
        assert "snow" in ((await native.chat("demo", history)).message.content or "")
        thought = await native.chat("demo-thinking", HI, think=True)
        assert thought.message.thinking
        shaped = await native.chat("demo", HI, format=City.model_json_schema())
        assert City.model_validate_json(shaped.message.content or "").name is not None


async def test_images_and_embeddings(start: Start) -> None:
    async with start() as run, client(run) as native:
        seen = await native.chat("demo-vision", [{"role": "user", "content": "see", "images": [PNG]}])
        assert "1 image" in (seen.message.content or "")
        one = await native.embed("demo-embed", "hello")
        two = await native.embed("demo-embed", ["hello", "there"])
        assert len(one.embeddings) == 1 and len(two.embeddings) == 2
        assert list(one.embeddings[0]) == list(two.embeddings[0])
        legacy = await native.embeddings("demo-embed", "hello")
        assert list(legacy.embedding) == list(one.embeddings[0])
        empty = await native.embed("demo-embed", "")
        assert list(empty.embeddings) == []


async def test_generating_raw_and_through_the_template(start: Start) -> None:
    async with start() as run, client(run) as native:
        await native.generate("demo", "a", raw=True)
        await native.generate("demo", "b", system="s")
        raw, plain = (one.body for one in run.ollama.seen if one.path == "/api/generate")
        assert (raw["raw"], raw["prompt"]) == (True, "a")
        assert "raw" not in plain and plain["system"] == "s"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "said"), [("chat", {"messages": HI}), ("generate", {"prompt": "hi"})])
async def test_the_params_header_uses_ollamas_field_names(
    start: Start, path: str, said: dict[str, Any], stream: bool
) -> None:
    body = {"model": "demo", "think": True, "keep_alive": 5, "stream": stream, **said}
    async with start() as run:
        answer = await run.http.post(f"{run.url}/api/{path}", json=body)
        assert answer.headers["x-gemmapy-params"] == "keep_alive=ignored, think=ignored"
    async with start("params: strict\n" + BARE) as run:
        refused = await run.http.post(f"{run.url}/api/{path}", json={**body, "keep_alive": None})
        assert refused.status == 400 and (await refused.json())["error"].startswith("'think' cannot be honoured")


async def test_models_are_listed_shown_and_reported_as_loaded(start: Start) -> None:
    text = "models: {mine: {alias: demo}, 'demo-vision:latest': {allowed: false}}\nchains: {chat: []}\n"
    async with start(text) as run, client(run) as native:
        listed = [model.model for model in (await native.list()).models]
        assert "mine" in listed and "demo:latest" in listed and "demo-vision:latest" not in listed
        assert "completion" in ((await native.show("mine")).capabilities or ())
        await native.chat("mine", HI)
        assert [model.model for model in (await native.ps()).models] == ["demo:latest"]
        with pytest.raises(ollama.ResponseError, match="does not exist"):
            await native.show("demo-vision")


async def test_a_loaded_model_that_is_not_allowed_is_not_listed(start: Start) -> None:
    async with start("chains: {chat: []}\n") as run, client(run) as native:
        for model in ("demo", "demo-vision"):
            await native.chat(model, HI)
        run.configure("chains: {chat: []}\nmodels: {demo-vision: {allowed: false}}\n")
        assert await run.server.reload()
        assert [model.model for model in (await native.ps()).models] == ["demo:latest"]


async def test_a_model_can_be_loaded_but_not_unloaded(start: Start) -> None:
    async with start() as run, client(run) as native:
        assert (await native.chat("demo", [])).done_reason == "load"
        assert (await native.generate("demo", "")).done_reason == "load"
        assert run.ollama.loads == 1
        raw = {"model": "demo", "prompt": "", "raw": True, "suffix": "b"}
        for stream in (True, False):
            answer = await run.http.post(f"{run.url}/api/generate", json={**raw, "stream": stream})
            document = await answer.json()  # a single document even when streamed, like Ollama's
            assert (document["done_reason"], document["response"]) == ("load", "")
        assert run.ollama.loads == 1
        with pytest.raises(ollama.ResponseError, match="operator") as refused:
            await native.generate("demo", "", keep_alive=0)
        assert refused.value.status_code == 403


@pytest.mark.parametrize("none", [0, 0.0, "0", "0s", "0m", "0.0s", "-0h"])
async def test_a_keep_alive_of_zero_is_refused_however_it_is_written(start: Start, none: Any) -> None:
    async with start() as run:
        answer = await run.http.post(f"{run.url}/api/generate", json={"model": "demo", "keep_alive": none})
        assert answer.status == 403 and run.ollama.loads == 0


async def test_requests_of_ollamas_own_command_line_are_accepted(start: Start) -> None:
    """Its types send some fields although they are empty."""
    empty = {"suffix": "", "system": "", "template": "", "context": None, "format": "", "options": None}
    async with start() as run:
        shown = {"model": "demo", "system": "", "template": "", "verbose": False, "options": None, "name": ""}
        told = await run.http.post(f"{run.url}/api/show", json=shown)
        assert told.status == 200 and "completion" in (await told.json())["capabilities"]
        load = await run.http.post(f"{run.url}/api/generate", json={"model": "demo", "prompt": "", **empty})
        assert (await load.json())["done_reason"] == "load"
        said = await run.http.post(
            f"{run.url}/api/generate", json={"model": "demo", "prompt": "hi", **empty, "keep_alive": "5m0s"}
        )
        lines = [json.loads(line) async for line in said.content]
        assert said.status == 200 and lines[-1]["done"] and "simulated" in "".join(one["response"] for one in lines)
        refused = await run.http.post(f"{run.url}/api/generate", json={"model": "demo", "template": "{{ .Prompt }}"})
        assert refused.status == 400 and "'template'" in (await refused.json())["error"]


@pytest.mark.parametrize("bound", [-1, -2])
async def test_num_predict_without_a_limit_is_accepted(start: Start, bound: int) -> None:
    """-1 and -2 mean no limit, even if the model has one of its own; as in Ollama."""
    async with start() as run, client(run) as native:
        await native.chat("demo", HI, options={"num_predict": bound})
        await native.generate("demo", "hi", options={"num_predict": bound, "seed": 1})
        sent = [one.body["options"] for one in run.ollama.seen if one.body and one.body.get("options")]
        assert sent == [{"num_predict": -1}, {"num_predict": -1, "seed": 1}]
        refused = await run.http.post(
            f"{run.url}/api/chat", json={"model": "demo", "messages": HI, "options": {"num_predict": -3}}
        )
        assert refused.status == 400 and "options.num_predict" in (await refused.json())["error"]


@pytest.mark.parametrize("path", ["chat", "generate", "embed", "embeddings", "show"])
async def test_the_error_for_an_unknown_model_names_the_model_list_of_its_dialect(start: Start, path: str) -> None:
    body = {"model": "nothing-like-it", "messages": HI, "prompt": "hi", "input": "hi"}
    async with start() as run:
        told = await run.http.post(f"{run.url}/api/{path}", json=body)
        assert told.status == 404
        assert (await told.json())["error"].endswith(
            "have access to it.  GET /api/tags lists those that are available."
        )
        other = await (await run.chat(model="nothing-like-it")).json()
        assert other["error"]["message"].endswith("  GET /v1/models lists those that are available.")


async def test_as_many_stop_sequences_as_editors_send_are_accepted(start: Start) -> None:
    async with start() as run, client(run) as native:
        stops = [f"<stop{number}>" for number in range(64)]
        await native.generate("demo", "hi", raw=True, options={"stop": stops})
        assert run.ollama.seen[-1].body["options"]["stop"] == stops
        with pytest.raises(ollama.ResponseError, match=r"options\.stop"):
            await native.generate("demo", "hi", raw=True, options={"stop": [*stops, "one more"]})


async def test_head_requests_are_answered_where_ollama_answers_them(start: Start) -> None:
    async with start() as run:
        for path in ("/", "/api/tags", "/api/version"):
            answer = await run.http.head(run.url + path)
            assert answer.status == 200 and await answer.read() == b""


async def test_the_root_path_says_that_ollama_is_running(start: Start) -> None:
    async with start() as run:
        assert await (await run.http.get(f"{run.url}/")).text() == "Ollama is running"


async def test_the_number_of_texts_per_embedding_call_is_configurable(start: Start) -> None:
    async with start("requests: {max_inputs: 2}\nchains: {embeddings: []}\n") as run, client(run) as native:
        assert len((await native.embed("demo-embed", ["a", "b"])).embeddings) == 2
        with pytest.raises(ollama.ResponseError, match="'input'") as refused:
            await native.embed("demo-embed", ["a", "b", "c"])
        assert refused.value.status_code == 400


async def test_cached_embeddings_have_all_their_counts_too(start: Start) -> None:
    async with start("plugins: {cache: {}}\nchains: {embeddings: [cache]}\n") as run, client(run) as native:
        made, kept = [await native.embed("demo-embed", "hello") for _ in range(2)]
        assert len(asked(run.ollama, "/api/embed")) == 1
    for one in (made, kept):
        assert one.prompt_eval_count == 4 and one.total_duration is not None and one.load_duration is not None


async def test_the_older_embeddings_take_one_text(start: Start) -> None:
    async with start() as run:
        url = f"{run.url}/api/embeddings"
        one = await (await run.http.post(url, json={"model": "demo-embed", "prompt": "hi"})).json()
        assert list(one) == ["embedding"] and len(one["embedding"]) == 384
        several = await run.http.post(url, json={"model": "demo-embed", "prompt": ["hi", "ho"]})
        assert several.status == 400 and "'prompt'" in (await several.json())["error"]


async def test_errors_have_ollamas_form(start: Start) -> None:
    async with start() as run, client(run) as native:
        with pytest.raises(ollama.ResponseError) as missing:
            await native.chat("nothing", HI)
        assert missing.value.status_code == 404
        answer = await run.http.post(f"{run.url}/api/chat", json={"model": "demo", "messages": "hi"})
        assert answer.status == 400 and list(await answer.json()) == ["error"]
        run.ollama.faults.append(Fault("error_line", after=2, message="the runner died"))
        with pytest.raises(ollama.ResponseError, match="the runner died"):
            _ = [part async for part in await native.chat("demo", HI, stream=True)]


async def test_a_body_is_read_as_json_whatever_its_content_type(start: Start) -> None:
    async with start() as run:
        body = b'{"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": false}'
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        assert (await run.http.post(f"{run.url}/api/chat", data=body, headers=headers)).status == 200


async def test_endpoints_that_change_models_are_off_by_default(start: Start) -> None:
    async with start() as run, client(run) as native:
        for call in (native.pull("x"), native.delete("demo"), native.copy("demo", "y")):
            with pytest.raises(ollama.ResponseError) as refused:
                await call
            assert refused.value.status_code in (404, 405)


async def test_the_native_endpoints_require_a_key_too(start: Start) -> None:
    async with start("keys: {a: secret}\nchains: {chat: []}\n") as run, client(run) as native:
        with pytest.raises(ollama.ResponseError) as refused:
            await native.chat("demo", HI)
        assert refused.value.status_code == 401
        async with client(run, headers={"Authorization": "Bearer secret"}) as allowed:
            assert (await allowed.chat("demo", HI)).done


async def test_langchains_chat_ollama(start: Start) -> None:
    answering = Simulator(say=lambda body: Said("Hello there", pieces=("Hello", " there")))
    async with start(ollama=answering) as run:
        model = ChatOllama(model="demo", base_url=run.url)
        assert (await model.ainvoke("hi")).content == "Hello there"
        assert "".join([str(part.content) async for part in model.astream("hi")]) == "Hello there"
        await close_langchain(model)


async def test_langchains_classes_have_tools_formats_thoughts_and_vectors(start: Start) -> None:
    class City(BaseModel):
        """A city."""

        name: str

    async with start() as run:
        model = ChatOllama(model="demo", base_url=run.url, num_predict=-1, num_ctx=4096, keep_alive="5m")
        called = await model.bind_tools([City]).ainvoke("Which city?")
        assert isinstance(called, AIMessage) and [call["name"] for call in called.tool_calls] == ["City"]
        whole = await model.with_structured_output(City, method="json_schema").ainvoke("Which city?")
        assert isinstance(whole, City)
        thinking = ChatOllama(model="demo-thinking", base_url=run.url, reasoning=True)
        parts = [part async for part in thinking.astream("hi")]
        assert "".join(str(part.additional_kwargs.get("reasoning_content", "")) for part in parts)
        vectors = OllamaEmbeddings(model="demo-embed", base_url=run.url)
        assert [len(one) for one in await vectors.aembed_documents(["a", "b"])] == [384, 384]
        for one in (model, thinking, vectors):
            await close_langchain(one)
        assert run.ollama.reloads == 0


async def test_fields_of_a_show_request_are_checked(start: Start) -> None:
    async with start() as run:
        answer = await run.http.post(f"{run.url}/api/show", json={"model": "demo", "verbose": "yes"})
        assert answer.status == 400 and "'verbose'" in (await answer.json())["error"]
