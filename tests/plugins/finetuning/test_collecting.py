"""A dataset is made of the caller's stored completions, and of nobody else's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import Running, Start
from tests.plugins.files.asking import A, B
from tests.plugins.finetuning.asking import call, config, tune, until

PATH = "/api/finetuning/datasets"


async def stored(run: Running, text: str, who: dict[str, str] = A, **more: Any) -> None:
    asked = {"model": "demo", "messages": [{"role": "user", "content": text}], "store": True, **more}
    await call(run, "POST", "/v1/chat/completions", who, 200, **asked)


async def test_stored_completions_become_a_dataset(start: Start, database_url: str, tmp_path: Path) -> None:
    text = config(database_url, tmp_path).replace('"files": {}', '"files": {}, "stored": {}')
    async with start(text.replace('{"chat": []}', '{"chat": ["stored"]}')) as run:
        for number in range(10):
            await stored(run, f"question {number}", metadata={"topic": "numbers"})
        await stored(run, "other", metadata={"topic": "others"})
        await stored(run, "cut short", metadata={"topic": "numbers"}, max_tokens=1)
        await stored(run, "bob's", B, metadata={"topic": "numbers"})
        said = [{"role": "system", "content": "nobody asks"}]  # as with a template without variables
        await stored(run, "", messages=said, metadata={"topic": "numbers"})
        told = await call(run, "POST", PATH, source="stored", metadata={"topic": "numbers"}, name="numbers")
        assert (told["examples"], told["left_out"]) == (10, 2) and told["tokens"] > 100
        assert (await call(run, "GET", f"/v1/files/{told['file_id']}"))["filename"] == "numbers.jsonl"
        async with run.http.get(f"{run.url}/v1/files/{told['file_id']}/content", headers=A) as response:
            made = [json.loads(line) for line in (await response.text()).splitlines()]
        assert {one["messages"][0]["content"] for one in made} == {f"question {number}" for number in range(10)}
        assert all(one["messages"][1]["role"] == "assistant" for one in made)
        assert (await until(run, (await tune(run, told["file_id"]))["id"]))["status"] == "succeeded"
        assert (await call(run, "POST", PATH, A, 200, source="stored", limit=3))["examples"] == 3
        for wish in ({"model": "demo-vision"}, {"since": 2**40}):
            assert (await call(run, "POST", PATH, A, 400, source="stored", **wish))["error"]["code"] == "no_examples"
        assert (await call(run, "POST", PATH, A, 400, source="web"))["error"]["param"] == "source"


async def test_without_stored_completions_the_error_says_so(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        told = await call(run, "POST", PATH, A, 400, source="stored")
        assert told["error"]["code"] == "nothing_stored"
