"""`gemmapy-proxy documents`, run as its users run it."""

from __future__ import annotations

from pathlib import Path

from tests.plugins.documents.asking import config
from tests.whole.commands import command, served

MORE = "upstreams: {local: {demo: {}}}\nlisten: {port: 0}\n"


async def test_files_are_added_and_their_index_is_made_anew(tmp_path: Path) -> None:
    file, folder = tmp_path / "proxy.yaml", tmp_path / "texts"
    file.write_text(config(f"sqlite:///{tmp_path}/x.db", tmp_path, MORE))
    (folder / "inner").mkdir(parents=True)
    (folder / "a.md").write_text("# Lanterns\n\nThe keeper of the lantern was Mabel Quill.")
    (folder / "inner" / "b.txt").write_text("An orchard of quinces wants deep soil.")
    (folder / "c.exe").write_bytes(b"MZ")
    async with served("serve", "--config", str(file)) as server:
        to = ("--url", server.url, "--key", "a-key")
        status, out, _ = await command("documents", "add", *to, str(folder))
        assert status == 1 and "c.exe: Files of the kind '.exe' are not read" in out and "2 of 3 files" in out
        status, out, _ = await command("documents", "add", *to, str(folder / "a.md"))
        assert status == 0 and "1 of 1 files" in out
        status, out, _ = await command("documents", "reindex", "--config", str(file))
        assert (status, out.split(" ")[0]) == (0, "2")
        status, out, _ = await command("documents", "add", *to, str(folder / "a.md"), str(folder / "inner"))
        assert status == 0 and "2 of 2 files" in out  # they are ready again
    status, _, err = await command("documents", "add", str(tmp_path / "nowhere"))
    assert status != 0 and "does not exist" in err
