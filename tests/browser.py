"""A real browser for tests, driven by the Chrome DevTools Protocol."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)  # fmt: skip
PATIENCE = 30.0


class Tab:
    """One page.  troubles: errors in its console, and uncaught exceptions."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.numbers = itertools.count(1)
        self.troubles: list[str] = []

    async def tell(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(PATIENCE):
            while True:
                message = await self.socket.receive_json()
                if message.get("id") == number:
                    assert "error" not in message, message
                    result: dict[str, Any] = message["result"]
                    return result
                self.hear(message)

    def hear(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            self.troubles.append(json.dumps(message["params"]["exceptionDetails"]))
        entry = message.get("params", {}).get("entry", {})
        if message.get("method") == "Log.entryAdded" and entry["level"] == "error":
            self.troubles.append(f"{entry['text']} {entry.get('url', '')}")

    async def js(self, expression: str) -> Any:
        """The value of the expression; a promise is awaited."""
        told = await self.tell("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until the condition, in JavaScript, is true."""
        await self.js(
            f"new Promise(done => {{ const look = () => ({condition}) ? done() : setTimeout(look, 10); look(); }})"
        )

    async def key(self, name: str, code: int, text: str, modifiers: int = 0) -> None:
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if kind == "keyDown" else {}
            press = {"type": kind, "key": name, "windowsVirtualKeyCode": code, "modifiers": modifiers, **more}
            await self.tell("Input.dispatchKeyEvent", **press)


@asynccontextmanager
async def browser(home: Path, http: aiohttp.ClientSession) -> AsyncIterator[Tab]:
    """A headless Chromium with one empty page.  home: an empty folder."""
    process = await asyncio.create_subprocess_exec(
        str(CHROMIUM),
        *FLAGS,
        f"--user-data-dir={home}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "HOME": str(home)},
        start_new_session=True,
    )
    try:
        address = await listening(home / "DevToolsActivePort", process)
        async with http.get(f"http://{address}/json/list") as response:
            pages = [one for one in await response.json() if one["type"] == "page"]
        async with http.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            tab = Tab(socket)
            for domain in ("Page", "Runtime", "Log"):
                await tab.tell(f"{domain}.enable")
            yield tab
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # with its children
        await process.wait()


async def listening(file: Path, process: asyncio.subprocess.Process) -> str:
    async with asyncio.timeout(PATIENCE):
        while len(lines := lines_of(file)) < 2:
            assert process.returncode is None, "the browser has ended"
            await asyncio.sleep(0.02)
    return f"127.0.0.1:{lines[0]}"


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
