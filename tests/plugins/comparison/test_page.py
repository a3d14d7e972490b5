"""The page on which models are compared, in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from proxy.upstreams.demo import Said
from tests.browser import CHROMIUM, Tab, browser
from tests.conftest import Running, Start
from tests.plugins.comparison.asking import asks, config, models

HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script> & done"
BASE = "listen: {port: 0, base_path: /llm}\n"


def hostile(body: dict[str, Any]) -> Said | None:
    return Said(f"{body['model']}: {HOSTILE}") if body.get("messages") else None


async def test_the_page_is_public_and_has_no_data(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db"), models()) as run, run.http.get(f"{run.url}/compare") as page:
        assert (page.status, page.content_type) == (200, "text/html") and "mistral" not in await page.text()


async def opened(run: Running, tab: Tab, path: str, key: str) -> None:
    await tab.tell("Page.navigate", url=run.url + path)
    await tab.until("document.readyState === 'complete' && document.getElementById('status').textContent")
    await tab.js(f"(() => {{ $('key').value = {json.dumps(key)}; $('load').click(); }})()")
    await tab.until("document.querySelectorAll('#models input').length > 2")


async def choose(tab: Tab, *names: str) -> None:
    for name in names:
        await tab.js(f"document.querySelector('#models input[value=\"{name}\"]').click()")


TITLES = "[...document.querySelectorAll('article h2')].map(one => one.textContent)"
ANSWERS = TITLES.replace("article h2", ".answer")


async def ask(tab: Tab, question: str) -> None:
    await tab.js("(() => { $('blind').click(); $('prompt').focus(); })()")
    await tab.tell("Input.insertText", text=question)
    await tab.key("Enter", 13, "\r", modifiers=2)  # Control+Enter, without a mouse
    await tab.until("!$('verdict').hidden")


async def vote_and_like(tab: Tab) -> None:
    """Vote for the second answer, and rate the first one up."""
    await tab.js("[...document.querySelectorAll('article')][1].querySelectorAll('button')[2].click()")
    await tab.until(f"{TITLES}[0] !== 'A'")
    await tab.js("document.querySelector('article button').click()")
    await tab.until("document.querySelector('article button').getAttribute('aria-pressed') === 'true'")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_models_are_compared_on_the_page(start: Start, tmp_path: Path) -> None:
    (home := tmp_path / "browser").mkdir()
    text = config(f"sqlite:///{tmp_path}/x.db", more=BASE)
    async with start(text, models(say=hostile)) as run, browser(home, run.http) as tab:
        await opened(run, tab, "/llm/compare", "a-key")
        await choose(tab, "llama:latest", "mistral:latest")
        await ask(tab, "who are you?")
        assert await tab.js(TITLES) == ["A", "B"]
        assert [one.partition(": ")[2] for one in await tab.js(ANSWERS)] == [HOSTILE, HOSTILE]
        assert await tab.js("document.title") == "Compare models"
        figures = await tab.js("document.querySelector('.figures').textContent")
        assert re.fullmatch(r"\d+\.\d s · \d+ tokens · [\d.]+ tokens/s · first after \d+ ms", figures)
        await vote_and_like(tab)
        assert sorted(await tab.js(TITLES)) == ["llama:latest", "mistral:latest"]
        (kept,) = (await asks(run, "GET", "/llm/api/comparisons"))["data"]
        assert kept["vote"] == kept["results"][1]["model"] and kept["results"][0]["rating"] == "up"
        await tab.js("$('to-ranking').click()")
        await tab.until("document.querySelectorAll('#table tr').length === 2")
        assert await tab.js("document.querySelector('#table td:nth-child(2)').textContent") == kept["vote"]
        assert await tab.js("[sessionStorage.getItem('key'), localStorage.length, document.cookie]") == ["a-key", 0, ""]
        # Only the first list of models, requested without a key, was refused, and no security policy was violated.
        assert [one for one in tab.troubles if "401" not in one] == [], tab.troubles


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_the_page_shows_that_a_stream_broke_off(start: Start, tmp_path: Path) -> None:
    (home := tmp_path / "browser").mkdir()
    async with start(config(f"sqlite:///{tmp_path}/x.db"), models()) as run, browser(home, run.http) as tab:
        await opened(run, tab, "/compare", "a-key")
        await choose(tab, "llama:latest", "mistral:latest")
        await tab.js("(() => { window.fetch = async () => new Response(''); $('prompt').value = 'hi'; })()")
        await tab.js("$('go').click()")
        await tab.until("!$('go').disabled && $('status').textContent.includes('broke off')")


HELD = """
const real = window.fetch;
window.fetch = async (path, options) => {
  const response = await real(path, options);
  if (path.endsWith("/rate")) await new Promise((given) => { window.release = given; });
  return response;
};
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_a_slow_vote_does_not_reveal_the_names_of_the_next_answers(start: Start, tmp_path: Path) -> None:
    (home := tmp_path / "browser").mkdir()
    async with start(config(f"sqlite:///{tmp_path}/x.db"), models()) as run, browser(home, run.http) as tab:
        await opened(run, tab, "/compare", "a-key")
        await choose(tab, "llama:latest", "mistral:latest")
        await ask(tab, "the first?")
        await tab.js(f"(() => {{ {HELD} }})()")
        await tab.js("[...document.querySelectorAll('article button')].at(-1).click()")
        await tab.until("window.release")
        await tab.js("(() => { $('prompt').value = 'the next?'; $('go').click(); })()")
        await tab.until("$('go').disabled === false && !$('verdict').hidden")
        await tab.js("(async () => { window.release(); await new Promise((given) => setTimeout(given)); })()")
        assert await tab.js(TITLES) == ["A", "B"]
        assert await tab.js("document.querySelector('article[data-won=true]')") is None
        newest, first = (await asks(run, "GET", "/api/comparisons"))["data"]
        assert newest["vote"] is None and first["vote"]
