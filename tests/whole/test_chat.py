"""The stock OpenAI client against a running server: chats."""

from __future__ import annotations

from tests.conftest import ASK, Start


async def test_a_chat_has_the_same_answer_whole_and_streamed(start: Start) -> None:
    async with start() as run, run.client() as client:
        whole = await client.chat.completions.create(**ASK)
        stream = await client.chat.completions.create(**ASK, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        assert whole.choices[0].message.content == "".join(pieces)
        assert "simulated" in "".join(pieces)
