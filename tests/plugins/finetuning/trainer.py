"""A trainer for tests: run as a script, it writes a small adapter for the simulated base model, or misbehaves."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDTH, ROWS, RANK = 384, {"q": 384, "k": 96}, 2


def adapter(folder: Path, **config: Any) -> None:
    header, data = {}, b""
    for layer, rows in ROWS.items():
        for side, shape in (("A", (RANK, WIDTH)), ("B", (rows, RANK))):
            raw = struct.pack("<f", 0.5) * (shape[0] * shape[1])
            name = f"base_model.model.model.layers.0.self_attn.{layer}_proj.lora_{side}.weight"
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (len(data), len(data) + len(raw))}
            data += raw
    written = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(written)) + written + data)
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(told))


def say(**told: Any) -> None:
    print(json.dumps(told), flush=True)  # noqa: T201  (its output is its protocol)


STUBBORN = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
GRANDCHILD = f"{STUBBORN}time.sleep(600)"
CHILD = (
    f"{STUBBORN}p = subprocess.Popen([sys.executable, '-c', {GRANDCHILD!r}]); print(p.pid, flush=True); time.sleep(600)"
)


def stubborn(note: Path) -> None:
    """Ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang(note)


def hang(note: Path) -> None:
    """Hang, with a child and a grandchild that ignore SIGTERM."""
    started = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE)
    assert started.stdout is not None
    grandchild = int(started.stdout.readline())
    note.with_suffix(".new").write_text(json.dumps([os.getpid(), started.pid, grandchild]))
    note.with_suffix(".new").rename(note)
    say(step=1, steps=10, message="hanging")
    time.sleep(600)


def fail() -> None:
    sys.stderr.write("CUDA out of memory\n")
    sys.exit(3)


def chatter() -> None:
    for step in range(5000):
        say(step=step, steps=5000, loss=1.0, message=f"word {step}")
    print("no JSON", "x" * 100_000)  # noqa: T201


def train(job: dict[str, Any]) -> None:
    examples = Path(job["training_file"]).read_text().splitlines()
    steps = job["n_epochs"] * -(-len(examples) // job["batch_size"])
    for step in range(1, steps + 1):
        say(step=step, steps=steps, loss=1 / step, epoch=step * job["n_epochs"] / steps)
    say(checkpoint=f"checkpoint-{steps}", step=steps, steps=steps, loss=1 / steps, valid_loss=0.5, tokens=1234)


def main(how: str, job: dict[str, Any]) -> None:
    output = Path(job["output"])
    before: dict[str, Callable[[], None]] = {
        "fail": fail,
        "chatter": chatter,
        "idle": lambda: time.sleep(600),
        "environment": lambda: say(message=json.dumps(dict(os.environ))),
    }
    if how.startswith(("hang", "stubborn")):
        (hang if how.startswith("hang") else stubborn)(Path(how.partition(":")[2]))
    before.get(how, lambda: None)()
    train(job)
    if how in ("gguf", "fill"):
        (output / "model.gguf").write_bytes(b"GGUF" + bytes(2_000_000 if how == "fill" else 100))
    elif how != "nothing":
        adapter(output, **({"use_dora": True} if how == "dora" else {}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
