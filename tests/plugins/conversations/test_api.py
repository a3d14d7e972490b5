"""The endpoints of conversations."""

from __future__ import annotations

import asyncio
import string
from typing import Any

import pytest
from sqlalchemy import select

from plugins.conversations import copying, removing
from plugins.conversations.conversation import Conversation
from plugins.conversations.removing import NOBODY
from plugins.conversations.snippet import around
from plugins.conversations.store import Store
from plugins.conversations.tables import MESSAGES, TALKS
from tests.conftest import ASK, Running, Start
from tests.plugins.conversations.asking import A, B, Json, asks, config, echo, kept, say, store_of, talk_of, texts
from tests.whole.asking import asked, streamed
from tests.whole.test_gateway import upstream_headers

PATH = "/api/conversations"


async def test_a_conversation_is_created_filled_answered_and_read(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        body = {"title": "Python Learning", "model": "demo", "system_prompt": "teach", "metadata": {"a": "b"}}
        talk = await asks(run, "POST", PATH, status=201, json=body)
        here = f"{PATH}/{talk['id']}"
        assert (talk["title"], talk["system_prompt"], talk["metadata"]) == ("Python Learning", "teach", {"a": "b"})
        added = await asks(run, "POST", f"{here}/messages", status=201, json={"role": "user", "content": "how?"})
        assert (added["position"], added["content"]) == (1, "how?")
        answer = await asks(run, "POST", f"{here}/generate", json={"temperature": 0.7, "stream": False})
        assert answer["choices"][0]["message"]["content"] == "heard how?"
        response = await run.http.post(
            f"{run.url}{here}/generate", headers=A, json={"stream": True, "message": "and then?"}
        )
        assert (await streamed(response)).text() == "heard and then?"
        assert [one["content"] for one in asked(run.ollama)[-1]["messages"]] == [
            "teach", "how?", "heard how?", "and then?",
        ]  # fmt: skip
        assert asked(run.ollama)[0]["options"]["temperature"] == 0.7
        found = await asks(run, "GET", here)
        assert [one["content"] for one in found["messages"]] == ["how?", "heard how?", "and then?", "heard and then?"]
        assert found["message_count"] == 4 and found["messages"][1]["finish_reason"] == "stop"
        told = await asks(run, "POST", f"{here}/generate", status=400, json={})
        assert (told["error"]["code"], told["error"]["param"]) == ("nothing_to_answer", "message")
        changed = await asks(run, "PUT", here, json={"title": "Lists", "metadata": {}})
        assert (changed["title"], changed["model"], changed["metadata"]) == ("Lists", "demo", {})
        assert (await asks(run, "DELETE", here))["deleted"] is True
        await asks(run, "GET", here, status=404)


async def test_generate_takes_the_fields_and_headers_of_any_chat(start: Start, tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    async with start(config(url, "templates, conversations, cache, retry"), echo()) as run:
        await asks(run, "POST", PATH, status=201, json={"id": "t", "model": "demo"})
        here, template = f"{PATH}/t/generate", {"name": "translate", "variables": {"language": "French", "text": "Hi"}}
        answer = await asks(run, "POST", here, json={"template": template})
        assert "Target language: French" in answer["choices"][0]["message"]["content"]
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        head = {**A, "traceparent": trace, "Cache-Control": "no-store", "x-gemmapy-conversation": "other"}
        body = {"message": "go on", "stream": True, "stream_options": {"include_usage": True}, "bogus": 1}
        response = await run.http.post(f"{run.url}{here}", headers=head, json=body)
        assert (await streamed(response)).chunks[-1]["usage"]
        told = {name: response.headers[f"x-gemmapy-{name}"] for name in ("cache", "conversation", "params")}
        assert told == {"cache": "bypass", "conversation": "t", "params": "bogus=ignored"}
        assert upstream_headers(run)["traceparent"] == trace


async def test_lists_are_paged_to_their_end(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        for number in range(5):
            await asks(run, "POST", PATH, status=201, json={"id": f"c{number}", "title": f"n{number}"})
        await say(run, "hi", "c1")
        pages, after = [], ""
        while True:
            page = await asks(run, "GET", f"{PATH}?limit=2{after}")
            pages += [one["id"] for one in page["data"]]
            if not page["has_more"]:
                break
            after = f"&after={page['last_id']}"
        assert pages == ["c1", "c4", "c3", "c2", "c0"]
        assert [one["id"] for one in (await asks(run, "GET", f"{PATH}?order=asc"))["data"]] == pages[::-1]
        first = await asks(run, "GET", f"{PATH}/c1/messages?limit=1")
        rest = await asks(run, "GET", f"{PATH}/c1/messages?after={first['last_id']}")
        assert [one["content"] for one in rest["data"]] == ["heard hi"] and first["has_more"]


async def test_search_finds_words_in_the_callers_own_messages(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        await say(run, "the weather in Vienna is cold", "c1")
        await say(run, 'quotes " and OR NEAR(* are words', "c2")
        await say(run, "the weather in Graz", "c3", B)
        found = await asks(run, "GET", f"{PATH}/search?q=WEATHER vienna")
        assert {one["conversation"]["id"] for one in found["data"]} == {"c1"} and len(found["data"]) == 2
        assert "Vienna is cold" in found["data"][0]["snippet"]
        assert len((await asks(run, "GET", f'{PATH}/search?q=" near'))["data"]) == 2
        assert (await asks(run, "GET", f"{PATH}/search?q=graz"))["data"] == []
        one = await asks(run, "GET", f"{PATH}/search?q=weather&limit=1")
        two = await asks(run, "GET", f"{PATH}/search?q=weather&limit=1&after={one['last_id']}")
        assert one["has_more"] and not two["has_more"] and one["last_id"] != two["last_id"]
        await asks(run, "DELETE", f"{PATH}/c1")
        assert (await asks(run, "GET", f"{PATH}/search?q=vienna"))["data"] == []


@pytest.mark.parametrize("sign", ["<!--", "a_", string.punctuation])
async def test_a_search_is_fast_for_any_text(start: Start, database_url: str, sign: str) -> None:
    async with start(config(database_url), echo()) as run, asyncio.timeout(30):
        content = f"a lantern {sign * 30_000} {{end}}"  # on which PostgreSQL's parser would spend hours
        body = {"id": "t", "messages": [{"role": "user", "content": content}]}
        await asks(run, "POST", PATH, status=201, json=body)
        (found,) = (await asks(run, "GET", f"{PATH}/search?q=lantern"))["data"]
        assert "a lantern" in found["snippet"]
        assert (await asks(run, "GET", f"{PATH}/search", params={"q": f"lantern {sign * 9}{{"}))["data"]


@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        ("", ["lantern"], ""),
        ("A lantern.", ["LANTERN"], "A lantern."),
        ("x " * 300 + "lantern" + " y" * 300, ["lantern"], "…" + "x " * 29 + "lantern" + " y" * 67 + "…"),
        ("x " * 300 + "lanterns " + "z " * 100 + "lantern end", ["lantern"], "…" + "z " * 29 + "lantern end"),
        ("lanterns " + "z" * 500, ["lantern"], "lanterns…"),
        ("z" * 500 + " lantern", ["none", "lantern"], "…lantern"),
        ("z" * 500, ["lantern"], "z" * 200 + "…"),
    ],
)
def test_search_results_show_the_surrounding_words(text: str, words: list[str], told: str) -> None:
    assert around(text, words) == told


async def test_a_fork_at_an_unknown_message_is_not_found(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        await say(run, "one")
        for id in ("\0", "nothing"):
            told = await asks(run, "POST", "/api/conversations/t/fork", status=404, json={"message": id})
            assert told["error"]["param"] == "message"


async def test_a_fork_appears_only_once_it_is_complete(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "ROWS", 3)
    async with start(config(database_url), echo()) as run:
        messages = [{"role": "user", "content": f"lantern {number}"} for number in range(10)]
        await asks(run, "POST", "/api/conversations", status=201, json={"id": "t", "messages": messages})
        shown = copying.shown

        async def looking(*given: Any) -> Any:
            await asks(run, "GET", "/api/conversations/f", status=404)
            assert len((await asks(run, "GET", "/api/conversations/search?q=lantern"))["data"]) == 10
            return await shown(*given)

        monkeypatch.setattr(copying, "shown", looking)
        await asks(run, "POST", "/api/conversations/t/fork", status=201, json={"id": "f"})
        assert texts(await kept(run, "f")) == [one["content"] for one in messages]
        assert (await talk_of(run, "f")).messages == 10
        monkeypatch.setattr(copying, "shown", created_meanwhile(run, shown))
        told = await asks(run, "POST", "/api/conversations/t/fork", status=409, json={"id": "g"})
        assert told["error"]["code"] == "conversation_exists"
        assert len((await asks(run, "GET", "/api/conversations/search?q=lantern&limit=50"))["data"]) == 20


def created_meanwhile(run: Running, shown: Any) -> Any:
    async def made(*given: Any) -> Any:
        await asks(run, "POST", "/api/conversations", status=201, json={"id": "g"})
        return await shown(*given)

    return made


async def test_an_unfinished_fork_is_removed(start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, append, copied = copying.shown, Store.append, list[str]()

    async def appending(self: Store, connection: Any, conversation: Conversation, *given: Any, **more: Any) -> Any:
        copied.append(conversation.owner)
        return await append(self, connection, conversation, *given, **more)

    monkeypatch.setattr(Store, "append", appending)
    async with start(config(database_url, max_conversations=2), echo()) as run:
        body = {"messages": [{"role": "user", "content": "lantern"}]}
        await asks(run, "POST", "/api/conversations", status=201, json={"id": "t", **body})
        await asks(run, "POST", f"{PATH}/t/fork", status=409, json={"id": "t"})
        assert NOBODY not in copied, "it is known before anything is copied"
        monkeypatch.setattr(copying, "shown", created_meanwhile(run, shown))
        await asks(run, "POST", f"{PATH}/t/fork", status=400, json={"id": "f"})
        assert copied.pop() == NOBODY
        await asks(run, "POST", f"{PATH}/t/fork", status=400, json={"id": "f"})
        assert NOBODY not in copied
        async with asyncio.timeout(30):
            while (await owners(run), await said(run)) != (["alice", "alice"], 1):  # noqa: ASYNC110  (nobody is told)
                await asyncio.sleep(0.01)


async def owners(run: Running) -> list[str]:
    async with store_of(run).database.reading() as connection:
        return list((await connection.execute(select(TALKS.c.owner))).scalars())


async def said(run: Running) -> int:
    """The number of all messages."""
    async with store_of(run).database.reading() as connection:
        return len((await connection.execute(select(MESSAGES.c.number))).all())


async def test_a_fork_is_independent_of_its_origin(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        await say(run, "one"), await say(run, "two")
        second = (await kept(run))[1]
        fork = await asks(run, "POST", f"{PATH}/t/fork", status=201, json={"message": second.id, "id": "f"})
        assert (fork["forked_from"], fork["title"], fork["message_count"]) == ("t", "one", 2)
        await say(run, "other", "f")
        assert texts(await kept(run, "f")) == ["one", "heard one", "other", "heard other"]
        assert len(await kept(run)) == 4
        told = await asks(run, "POST", f"{PATH}/t/fork", status=409, json={"id": "f"})
        assert told["error"]["code"] == "conversation_exists"


async def test_a_conversation_is_exported_as_json_and_markdown(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        await say(run, [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}])
        told = await asks(run, "GET", f"{PATH}/t/export")
        assert [one["content"] for one in told["messages"]] == ["one", "heard one"]
        response = await run.http.get(f"{run.url}{PATH}/t/export?format=markdown", headers=A)
        text = await response.text()
        assert response.content_type == "text/markdown" and "attachment" in response.headers["Content-Disposition"]
        assert text.startswith("# one\n") and "## User\n\none\n\n## Assistant\n\nheard one\n" in text


async def test_statistics_are_of_the_callers_own_conversations(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        await say(run, "one"), await say(run, "two", "u"), await say(run, "three", who=B)
        told = await asks(run, "GET", f"{PATH}/statistics")
        assert (told["conversations"], told["messages"], told["average_messages"]) == (2, 4, 2.0)
        assert told["messages_by_role"] == {"assistant": 2, "user": 2}
        assert [one["messages"] for one in told["by_day"]] == [4] and told["prompt_tokens"] > 0
        assert told["by_model"][0]["model"] == "demo"


OTHERS: list[tuple[str, str, Json | None]] = [
    ("GET", f"{PATH}/t", None),
    ("PUT", f"{PATH}/t", {"title": "x"}),
    ("DELETE", f"{PATH}/t", None),
    ("GET", f"{PATH}/t/messages", None),
    ("POST", f"{PATH}/t/messages", {"role": "user", "content": "x"}),
    ("POST", f"{PATH}/t/generate", {"model": "demo", "message": "x"}),
    ("POST", f"{PATH}/t/fork", {}),
    ("GET", f"{PATH}/t/export", None),
]


async def test_no_route_shows_or_changes_another_callers_conversation(start: Start, database_url: str) -> None:
    async with start(config(database_url), echo()) as run:
        await say(run, "secret")
        for method, path, body in OTHERS:
            told = await asks(run, method, path, B, 404, **({"json": body} if body is not None else {}))
            assert told["error"]["code"] == "conversation_not_found"
        assert (await asks(run, "GET", PATH, B))["data"] == []
        await asks(run, "GET", f"{PATH}?after=t", B, 404)
        mine = (await kept(run))[0].id
        await asks(run, "GET", f"{PATH}/search?q=secret&after={mine}", B, 404)
        assert len(await kept(run)) == 2 and (await asks(run, "GET", f"{PATH}/t"))["title"] == "secret"
        await say(run, "b", "t", B)
        await asks(run, "GET", f"{PATH}/t/messages?after={mine}", B, 404)
        await asks(run, "POST", f"{PATH}/t/fork", B, 404, json={"message": mine})


BAD: list[tuple[str, str, Json | None, str | None]] = [
    ("POST", "", {"titel": "x"}, "titel"),
    ("POST", "", {"id": "a/b"}, "id"),
    ("POST", "", {"id": "search"}, "id"),
    ("POST", "", {"metadata": {"a": "b" * 513}}, "metadata.a"),
    ("POST", "", {"messages": [{"role": "user"}]}, "messages[0].content"),
    ("GET", "?limit=0", None, "limit"),
    ("GET", "/search", None, "q"),
    ("GET", "/search?q=!!", None, None),
    ("GET", "/t/export?format=pdf", None, "format"),
    ("POST", "/t/messages", {"role": "robot", "content": "x"}, "role"),
    ("POST", "/t/messages", {}, "role"),
    ("POST", "/t/generate", {"temperature": "hot"}, "temperature"),
    ("POST", "/t/generate", {"messages": []}, "messages"),
    ("POST", "/t/generate", {"n": 2, "message": "x"}, "n"),
    ("POST", "/t/generate", {"message": "x", "use_cache": "no"}, "use_cache"),
    ("POST", "/t/generate", {"message": "x", "store": True}, "store"),
]


async def test_invalid_requests_name_the_field(start: Start, tmp_path: Any) -> None:
    chain = "templates, conversations, cache"
    async with start(config(f"sqlite:///{tmp_path}/x.db", chain), echo()) as run:
        await say(run, "hi")
        for method, path, body, param in BAD:
            told = await asks(run, method, PATH + path, status=400, **({"json": body} if body is not None else {}))
            assert told["error"]["param"] == param, (method, path, body)


async def test_conversations_and_messages_per_caller_are_limited(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", max_conversations=1, max_messages=2), echo()) as run:
        await say(run, "one")
        told = await asks(run, "POST", PATH, status=400, json={})
        assert told["error"]["code"] == "conversation_full"
        told = await asks(run, "POST", f"{PATH}/t/messages", status=400, json={"role": "user", "content": "x"})
        assert told["error"]["code"] == "conversation_full" and len(await kept(run)) == 2
        told = await asks(run, "POST", "/v1/chat/completions", status=400, json={**ASK, "conversation": "t"})
        assert told["error"]["code"] == "conversation_full" and run.ollama.started == 1, (
            "it is refused before the model is called"
        )
        await asks(run, "DELETE", f"{PATH}/t")
        await asks(run, "POST", PATH, status=201, json={})
