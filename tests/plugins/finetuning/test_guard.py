"""The guard process between a server and its trainer ends all of the trainer's processes, whenever it is signalled."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from plugins.finetuning import trainer
from plugins.finetuning.guard import NOT_STARTED
from plugins.finetuning.trainer import GUARD, Trainer, Training
from plugins.finetuning.work import made_anew
from tests.plugins.finetuning.asking import TRAINER
from tests.plugins.finetuning.test_jobs import alive, noted, until_dead, until_true

ALONE = {**os.environ, "PYTHONPATH": str(GUARD.parent)}
FIRST_INSTANT = """
import os, signal, subprocess, sys, time
import guard

class Popen(subprocess.Popen):
    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

subprocess.Popen = Popen
os._exit(guard.main(0.2, sys.argv[2:]))
"""


async def test_a_guard_signalled_at_its_very_start_ends_the_trainer_and_its_children(tmp_path: Path) -> None:
    note, job = tmp_path / "note", tmp_path / "job.json"
    job.write_text('{"output": ""}')
    command = (sys.executable, "-c", FIRST_INSTANT, str(note), sys.executable, str(TRAINER), f"hang:{note}", str(job))
    out = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=out, env=ALONE)
    await until_true(note.exists)
    async with asyncio.timeout(30):
        assert await process.wait() == 128 + signal.SIGTERM
    await until_dead(json.loads(note.read_text()))


async def test_a_trainer_does_not_start_if_its_guard_is_already_dead() -> None:
    code = "import guard, sys; guard.dies_with(int(sys.argv[1])); print('begun')"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, "1234567", stdout=asyncio.subprocess.PIPE, env=ALONE
    )
    assert (await process.communicate())[0] == b"" and process.returncode == NOT_STARTED


TRAINING = """
import asyncio, sys
from pathlib import Path
from plugins.finetuning import trainer

async def rest():
    pass

trainer.GRACE = 0.5
folder, *command = sys.argv[1:]
training = trainer.Training(trainer.Trainer(command=command), Path(folder), 10**9, lambda line: None, rest)
asyncio.run(training.run(Path(folder) / "job.json"))
"""


async def test_after_a_server_was_killed_training_starts_only_once_its_trainer_has_ended(
    tmp_path: Path,
) -> None:
    note, folder = tmp_path / "note", tmp_path / "tuning" / "run-1"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text('{"output": ""}')
    command = (sys.executable, "-c", TRAINING, str(folder), sys.executable, str(TRAINER), f"stubborn:{note}")
    process = await asyncio.create_subprocess_exec(*command)
    processes = await noted(note)
    process.kill()
    await process.wait()
    run = await made_anew(folder.parent)
    assert not alive(processes[0]) and [one.name for one in run.iterdir()] == ["output"]
    await until_dead(processes)


async def test_what_an_earlier_trainer_left_running_does_not_write_to_the_next_ones_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "GRACE", 0.01)
    earlier = await made_anew(tmp_path / "job")
    with trainer.opened(earlier) as file:
        assert trainer.locked(file)
        later = await made_anew(tmp_path / "job")
    earlier.mkdir()  # as one does that makes its folders where they are missing
    (earlier / "adapter.gguf").touch()
    assert later != earlier and [one.name for one in later.rglob("*")] == ["output"]


LEAVING = """
import subprocess, sys
print(subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, start_new_session=True).pid, flush=True)
"""


async def nothing() -> None:
    pass


async def test_a_trainers_orphans_hold_no_file_of_the_server_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []
    monkeypatch.setattr(trainer, "DRAIN", 0.01)
    before = set(os.listdir("/proc/self/fd"))
    one = Trainer(command=(sys.executable, "-c", LEAVING))
    await Training(one, tmp_path, 10**9, heard.append, nothing).run(tmp_path / "job.json")
    await until_true(lambda: set(os.listdir("/proc/self/fd")) <= before)
    os.kill(int(heard[0]), signal.SIGKILL)


async def test_an_exception_in_handling_the_last_output_is_raised(tmp_path: Path) -> None:
    def hear(line: bytes) -> None:
        raise ValueError(line)

    one = Trainer(command=(sys.executable, "-c", "print(1)"))
    with pytest.raises(ValueError, match="1"):
        await Training(one, tmp_path, 10**9, hear, nothing).run(tmp_path / "job.json")
