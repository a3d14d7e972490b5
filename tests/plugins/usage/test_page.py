"""The page with the figures, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, Tab, browser
from tests.conftest import Running, Start
from tests.plugins.usage.asking import A, B, chat, config, get, written

HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"
PREFIX = "/llm"
NONE = "\u2013"
CARDS = """
Object.fromEntries([...document.querySelectorAll("#figures div")].map(
    one => [...one.children].slice(0, 2).map(part => part.textContent)))
"""
LONG = """
(one => [one.rows.length, one.caption.textContent])(table(["a"], Array.from({length: 101}, () => ["x"])))
"""
OWN = "[$('whose').hidden, $('of-users').hidden, $('status').textContent.endsWith('your own calls')]"


def cells(table: str) -> str:
    """A JavaScript expression for the texts of a table's rows."""
    return f"[...document.querySelectorAll('#{table} tbody tr')].map(row => [...row.cells].map(one => one.textContent))"


async def shown(tab: Tab, url: str, key: str) -> None:
    await tab.tell("Page.navigate", url=url)
    await tab.until("document.readyState === 'complete' && document.getElementById('status').textContent")
    await tab.js(f"(() => {{ $('key').value = {json.dumps(key)}; $('controls').requestSubmit(); }})()")
    await tab.until("$('status').textContent.startsWith('As of')")


async def chosen(tab: Tab, id: str, value: str, until: str) -> None:
    change = f"$('{id}').value = {json.dumps(value)}; $('{id}').dispatchEvent(new Event('change'));"
    await tab.js(f"(() => {{ {change} }})()")
    await tab.until(until)


async def test_the_page_is_public_and_has_no_data(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as run:
        await chat(run, A)
        async with run.http.get(f"{run.url}/dashboard") as page:
            assert (page.status, page.content_type) == (200, "text/html") and "alice" not in await page.text()


async def calls(run: Running) -> None:
    await chat(run, A), await chat(run, A), await chat(run, A, model=HOSTILE)
    await chat(run, B, model="demo-thinking")
    await written(run, 4)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_the_page_shows_the_endpoints_figures(start: Start, tmp_path: Path) -> None:
    (home := tmp_path / "browser").mkdir()
    more = f"listen: {{port: 0, base_path: {PREFIX}}}\n"
    async with (
        start(
            config(f"sqlite:///{tmp_path}/x.db", more),
        ) as run,
        browser(home, run.http) as tab,
    ):
        run.url += PREFIX
        await calls(run)
        await shown(tab, f"{run.url}/dashboard", "o-key")
        told = await get(run, "/api/metrics/dashboard?days=7")
        cards = await tab.js(CARDS)
        assert (cards["Calls"], cards["Failed"], cards["From the cache"]) == ("4", "1", "33.3 %")
        assert cards["Tokens"] == str(told["total_tokens"]) and cards["Cost, USD"] != NONE
        assert [row[:2] for row in await tab.js(cells("users"))] == [["alice", "3"], ["bob", "1"]]
        models = {row[0]: row[1] for row in await tab.js(cells("models"))}
        assert models == {"demo:latest": "2", "demo-thinking:latest": "1", "(no such model)": "1"}
        assert await tab.js(cells("errors")) == [["model_not_found", "(no such model)", "1"]]
        assert await tab.js("document.querySelectorAll('#chart .bar-0').length") == 1
        await chosen(tab, "user", "bob", "document.querySelector('#figures dd').textContent === '1'")
        assert [row[0] for row in await tab.js(cells("models"))] == ["demo-thinking:latest"]
        assert [row[0] for row in await tab.js(cells("users"))] == ["alice", "bob"]  # so that the browser can go back
        for days in ("1", "30", "90"):
            await chosen(tab, "days", days, f"$('points').textContent !== '' && $('days').value === '{days}'")
        for what in await tab.js("[...$('what').options].map(one => one.value)"):
            titled = json.dumps(f"{what} over time")
            await chosen(tab, "what", what, f"document.querySelector('#chart > svg').ariaLabel === {titled}")
        assert await tab.js(LONG) == [1 + 100, "The first 100 of 101"]
        assert await tab.js("document.title") == "Dashboard"
        assert [one for one in tab.troubles if "401" not in one] == [], tab.troubles


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_users_see_only_their_own_calls_on_the_page(start: Start, tmp_path: Path) -> None:
    (home := tmp_path / "browser").mkdir()
    async with start(config(f"sqlite:///{tmp_path}/x.db")) as run, browser(home, run.http) as tab:
        await calls(run)
        await shown(tab, f"{run.url}/dashboard", "b-key")
        assert (await tab.js(CARDS))["Calls"] == "1"
        assert await tab.js(OWN) == [True, True, True]
        assert "alice" not in await tab.js("document.body.textContent")
        await tab.js("(() => { $('key').value = 'wrong'; $('controls').requestSubmit(); })()")
        await tab.until("$('status').className === 'error'")
        assert "key" in await tab.js("$('status').textContent") and await tab.js("$('all').hidden")
