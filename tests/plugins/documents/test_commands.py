"""`gemmapy-proxy documents`, run as by users."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.documents.asking import config
from tests.whole.commands import command, served

MORE = "upstreams: {local: {demo: {}}}\nlisten: {port: 0}\n"


@pytest.mark.slow
async def test_files_are_added_and_reindexed(tmp_path: Path) -> None:
    file, folder = tmp_path / "proxy.yaml", tmp_path / "texts"
    file.write_text(config(f"sqlite:///{tmp_path}/x.db", tmp_path, MORE))
    (folder / "inner").mkdir(parents=True)
    (folder / "a.md").write_text("# Lanterns\n\nThe keeper of the lantern was Mabel Quill.")
    (folder / "inner" / "b.txt").write_text("An orchard of quinces wants deep soil.")
    (folder / "c.exe").write_bytes(b"MZ")
    async with served("serve", "--config", str(file)) as server:
        to = ("--url", server.url, "--key", "a-key")
        status, out, _ = await command("documents", "add", *to, str(folder))
        assert status == 1 and "c.exe: Files of the kind '.exe' are not supported" in out and "2 of 3 files" in out
        status, out, _ = await command("documents", "reindex", "--config", str(file))
        assert (status, out.split(" ")[0]) == (0, "2")
        status, out, _ = await command("documents", "add", *to, str(folder / "a.md"), str(folder / "inner"))
        assert status == 0 and "2 of 2 files" in out  # until they are ready again


async def test_reindexing_without_the_plugin_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text("plugins: {cache: {}}\nchains: {chat: [cache]}\n")
    status, out, error = await command("documents", "reindex", "--config", str(file))
    assert (status, out) == (1, "") and f"no plugin of {file} is `documents`" in error


async def test_the_plugin_is_recognised_under_another_name(tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    text = config(f"sqlite:///{tmp_path}/x.db", tmp_path, MORE)
    for use in ("documents", "plugins.documents:Documents"):
        renamed = text.replace('"documents": {', f'"library": {{"use": "{use}", ')
        file.write_text(renamed.replace('["documents"', '["library"'))
        status, out, error = await command("documents", "reindex", "--config", str(file))
        assert (status, out.split(" ")[0]) == (0, "0"), error


async def test_an_unreachable_server_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("The keeper of the lantern was Mabel Quill.")
    status, out, _ = await command("documents", "add", "--url", "http://127.0.0.1:9", str(tmp_path / "a.md"))
    assert status == 1 and "no server answers at http://127.0.0.1:9: Connection refused" in out
