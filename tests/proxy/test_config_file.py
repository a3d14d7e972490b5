"""When the file is reloaded, and what a reload may not change."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config_file import Overrides, Watch, for_reload, reader
from proxy.errors import ConfigError


async def test_a_file_reloaded_by_sighup_is_not_reloaded_again_for_the_same_change(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("chains: {}\n")
    watch = Watch(path)
    path.write_text("chains: {chat: []}\n")
    assert watch.changed()
    path.write_text("chains: {chat: [], embeddings: []}\n")
    watch.hangup()
    await watch.next()
    assert not watch.changed()
    path.unlink()
    assert not watch.changed()


def test_after_a_change_slots_are_checked_against_the_running_number_of_workers(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("listen: {workers: 4}\nchains: {}\n")
    read = reader(path, Overrides())
    again = for_reload(read, read()[0], insecure=False)
    path.write_text("upstreams: {a: {ollama: 'http://a', slots: 2}}\nchains: {}\n")
    with pytest.raises(
        ConfigError, match=r"a\.slots: 2 slots cannot be divided among 4 workers; give it 4, or fewer workers"
    ):
        again()


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("listen: {port: 1, host: '::1'}\nchains: {}\n")
    config, source = reader(path, Overrides(port=2, demo=True))()
    assert (config.listen.host, config.listen.port, source.text) == ("::1", 2, path.read_text())
    assert [upstream.demo is not None for upstream in config.upstreams.values()] == [True]
