"""Reads a Dockerfile, and executes it below a directory, for machines without a container engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PLACES = re.compile(r"(?<![\w.])/(?=(?:src|opt|etc|data)\b)")
"""The start of a path in the image; it does not match the path in a command such as `GET /healthz`."""

UNREACHED = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeoutError")
"""What pip writes if it cannot reach its index."""


@dataclass(frozen=True)
class Instruction:
    word: str
    options: Mapping[str, str]
    """`--from=builder` is {"from": "builder"}."""
    value: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.value)

    @property
    def exec(self) -> list[str]:
        """The command in its exec form.  Raises ValueError if it is in another form."""
        words: list[str] = json.loads(self.value.removeprefix("CMD "))
        return words


@dataclass(frozen=True)
class Stage:
    base: str
    name: str
    instructions: tuple[Instruction, ...]

    def all(self, word: str) -> list[Instruction]:
        return [one for one in self.instructions if one.word == word]

    def last(self, word: str) -> Instruction:
        return self.all(word)[-1]

    @property
    def env(self) -> Mapping[str, str]:
        return dict(pair.split("=", 1) for one in self.all("ENV") for pair in one.words)


def stages_of(text: str) -> list[Stage]:
    stages: list[Stage] = []
    for one in instructions_of(text):
        if one.word == "FROM":
            base, _, name = one.value.partition(" AS ")
            stages.append(Stage(base, name, ()))
        else:
            last = stages.pop()
            stages.append(Stage(last.base, last.name, (*last.instructions, one)))
    return stages


def instructions_of(text: str) -> Iterator[Instruction]:
    bare = "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", "", bare).splitlines():
        word, rest = line.split(None, 1)
        options = {}
        while found := re.match(r"--([\w-]+)=(\S+)\s+", rest):
            options[found[1]] = found[2]
            rest = rest[found.end() :]
        yield Instruction(word, options, rest)


class NoIndex(Exception):
    """pip cannot reach the package index."""


@dataclass
class Image:
    """The image that a Dockerfile builds, with `root` for /.  All stages use this root, so that paths stay valid."""

    root: Path
    context: Path
    env: dict[str, str] = field(default_factory=dict)
    directory: Path = Path("/")
    stage: str = ""

    def build(self, stages: list[Stage]) -> None:
        """Execute the stages.  Raises NoIndex, or AssertionError with the output of a command that failed."""
        for stage in stages:
            if self.root.exists():
                self.root.rename(self.aside(self.stage))
            self.root.mkdir()
            self.stage, self.env, self.directory = stage.name, {}, self.root
            for one in stage.instructions:
                self.carry_out(one)

    def aside(self, stage: str) -> Path:
        return self.root.with_name(f"{self.root.name}-{stage}")

    def carry_out(self, one: Instruction) -> None:
        match one.word:
            case "WORKDIR":
                self.directory = Path(self.there(one.value))
                self.directory.mkdir(parents=True, exist_ok=True)
            case "ENV":
                self.env |= {name: self.there(value) for name, value in (word.split("=", 1) for word in one.words)}
            case "COPY":
                self.copy(one)
            case "RUN":
                self.run(one.value)

    def copy(self, one: Instruction) -> None:
        stage = one.options.get("from")
        *sources, target = one.words
        to = self.directory / self.there(target)
        for source in sources:
            found = self.context / source if stage is None else self.aside(stage) / source.lstrip("/")
            if found.is_dir():
                shutil.copytree(found, to, symlinks=True, dirs_exist_ok=True, ignore=ignored if not stage else None)
            else:
                into = to / found.name if target.endswith("/") else to
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, into)

    def run(self, command: str) -> None:
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | self.env
        done = subprocess.run(
            ["sh", "-c", self.there(command)], cwd=self.directory, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode and UNREACHED.search(done.stderr):
            raise NoIndex(done.stderr)
        assert done.returncode == 0, done.stderr

    def there(self, text: str) -> str:
        return PLACES.sub(lambda found: f"{self.root}/", text)

    def runtime(self, **given: str) -> dict[str, str]:
        """The environment of a container: the image's and the given variables, and none of this machine's."""
        env = self.env | given
        return env | {"PATH": env["PATH"].replace("$PATH", os.defpath)}


def ignored(directory: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__"}
