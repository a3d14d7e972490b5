"""LangChain keeps the history itself and sends it again; the stored conversation does not get it twice."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.conftest import Start
from tests.plugins.conversations.asking import config, echo, kept, talk_of, texts
from tests.whole.asking import asked


@pytest.mark.filterwarnings("ignore:.*(is|was) deprecated:DeprecationWarning")
async def test_a_runnable_with_history_continues_a_stored_conversation(start: Start, tmp_path: Any) -> None:
    histories: dict[str, InMemoryChatMessageHistory] = {}

    def history(session_id: str) -> InMemoryChatMessageHistory:
        return histories.setdefault(session_id, InMemoryChatMessageHistory())

    async with start(config(f"sqlite:///{tmp_path}/x.db"), echo()) as run:
        model = ChatOpenAI(
            base_url=f"{run.url}/v1", api_key=SecretStr("a-key"), model="demo", extra_body={"conversation": "lc"}
        )
        prompt = ChatPromptTemplate([("system", "be brief"), MessagesPlaceholder("history"), ("human", "{question}")])
        chain = RunnableWithMessageHistory(
            prompt | model, history, input_messages_key="question", history_messages_key="history"
        )
        for word in ("one", "two", "three"):
            answer = await chain.ainvoke({"question": word}, {"configurable": {"session_id": "s"}})
            assert answer.content == f"heard {word}"
        histories.clear()  # the client has forgotten; the server has not
        await chain.ainvoke({"question": "four"}, {"configurable": {"session_id": "s"}})
        told = [one["content"] for one in asked(run.ollama)[-1]["messages"]]
        found = texts(await kept(run, "lc"))
        assert (await talk_of(run, "lc")).system == "be brief"
    words = [text for word in ("one", "two", "three", "four") for text in (word, f"heard {word}")]
    assert found == words and told == ["be brief", *words[:-1]]
