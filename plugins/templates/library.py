"""Templates from files: the packaged ones, and the operator's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final, TypeAlias

from plugins.templates import yamltext
from plugins.templates.document import LATEST, Document
from plugins.templates.template import Template
from proxy.config import packaged
from proxy.errors import ConfigError

MOST_FILES: Final = 10_000
Version: TypeAlias = int | str | None
"""A number, an alias, or None for the newest."""


class Library:
    """Templates by name and version; immutable."""

    def __init__(self, documents: Iterable[Document]) -> None:
        """Raises ConfigError for duplicates."""
        self.names: dict[str, dict[int, Template]] = {}
        self.aliases: dict[tuple[str, str], int] = {}
        problems = [problem for one in documents for problem in self._add(one)]
        if problems:
            raise ConfigError(problems)

    def _add(self, document: Document) -> Iterator[str]:
        versions = self.names.setdefault(document.name, {})
        if document.version in versions:
            yield f"there are two templates {document.name}@{document.version}"
        versions[document.version] = Template(document)
        for alias in document.aliases:
            if (document.name, alias) in self.aliases:
                yield f"{alias!r} is an alias of two versions of the template {document.name!r}"
            self.aliases[document.name, alias] = document.version

    def over(self, other: Library) -> Library:
        """Both combined; for a name in both, this one's templates are used."""
        both = Library(())
        both.names = {**other.names, **self.names}
        theirs = {key: version for key, version in other.aliases.items() if key[0] not in self.names}
        both.aliases = {**theirs, **self.aliases}
        return both

    def find(self, name: str, version: Version) -> Template | None:
        """None if the name or the version does not exist."""
        versions = self.names.get(name)
        if versions is None:
            return None
        if version is None or version == LATEST:
            return versions[max(versions)]
        number = version if isinstance(version, int) else self.aliases.get((name, version))
        return None if number is None else versions.get(number)

    def newest(self) -> Iterator[Template]:
        for versions in self.names.values():
            yield versions[max(versions)]

    def aliases_of(self, name: str) -> dict[str, int]:
        mine = {alias: version for (one, alias), version in self.aliases.items() if one == name}
        return {**mine, LATEST: max(self.names[name])}


@lru_cache(1)
def built_in() -> Library:
    """The packaged templates; read once per process."""
    return Library(read(packaged("templates")))


class Files:
    """A cache of parsed files: a reload blocks the process, so it should only read files that changed."""

    def __init__(self) -> None:
        self.known: dict[Path, tuple[tuple[int, int], list[Document]]] = {}

    def read(self, folder: Path) -> list[Document]:
        """All `.yaml` and `.yml` files in a folder, recursively.  Raises ConfigError with all problems."""
        documents: list[Document] = []
        problems: list[str] = []
        files = files_in(folder)
        self.known = {file: self.known[file] for file in files if file in self.known}
        for file in files:
            try:
                documents += self.one(file)
            except yamltext.Unreadable as error:
                problems += error.problems
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{file}:1: {error}")
        if problems:
            raise ConfigError(problems)
        return documents

    def one(self, file: Path) -> list[Document]:
        found = file.stat()
        stamp = found.st_mtime_ns, found.st_size
        if (kept := self.known.get(file)) is not None and kept[0] == stamp:
            return kept[1]
        documents = yamltext.read(str(file), file.read_text(encoding="utf-8"))
        self.known[file] = stamp, documents
        return documents


def files_in(folder: Path) -> list[Path]:
    """Raises ConfigError if the folder does not exist, or has too many files."""
    if not folder.is_dir():
        raise ConfigError([f"path: there is no folder {str(folder)!r}"])
    files = sorted(one for one in folder.rglob("*.y*ml") if one.suffix in (".yaml", ".yml"))
    if len(files) > MOST_FILES:
        raise ConfigError([f"path: there are more than {MOST_FILES} files in {str(folder)!r}"])
    return files


def read(folder: Path) -> list[Document]:
    """All templates in a folder, without a cache."""
    return Files().read(folder)
