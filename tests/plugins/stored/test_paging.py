"""Pages of items: in order for any size, and without a whole chain of responses in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from plugins.stored.answers import Document
from plugins.stored.paging import Page, page_among
from plugins.stored.store import Store
from tests.conftest import Start
from tests.plugins.stored.asking import ask, config, respond


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_are_consecutive_and_read_no_more_than_they_show(
    start: Start, database_url: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    behind = Store.behind

    async def counted(self: Store, owner: str, id: str, newest: bool) -> AsyncIterator[Document]:
        async for item in behind(self, owner, id, newest):
            read.append(item["id"])
            yield item

    monkeypatch.setattr(Store, "behind", counted)
    async with start(config(database_url)) as run:
        last = await respond(run)
        for _ in range(3):
            last = await respond(run, previous_response_id=last["id"])
        path, ids = f"/v1/responses/{last['id']}/input_items?order={order}", list[str]()
        assert len(whole := [one["id"] for one in (await ask(run, "GET", path))[1]["data"]]) == 7
        read.clear()
        await ask(run, "GET", f"{path}&limit=1")
        assert len(read) <= 2
        more = ""
        for _ in range(4):
            page = (await ask(run, "GET", f"{path}&limit=2{more}"))[1]
            ids += [one["id"] for one in page["data"]]
            assert page["has_more"] == (len(ids) < 7)
            more = f"&after={page['last_id']}"
        assert ids == whole


async def test_a_repeated_id_does_not_make_paging_loop() -> None:
    async def items() -> AsyncIterator[dict[str, Any]]:
        for id in "abac":
            yield {"id": id}

    page = await page_among(items(), Page(after="a", limit=2))
    assert [one["id"] for one in page["data"]] == ["c"] and not page["has_more"]
