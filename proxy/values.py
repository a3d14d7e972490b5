"""How the nouns that are made by the thousand are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

Noun = TypeVar("Noun")


@dataclass_transform(frozen_default=True)
def value(cls: type[Noun]) -> type[Noun]:
    """A dataclass that nobody changes, for what is made for every token or message.

    The type checker holds it.  A frozen dataclass would hold it at run time too, and takes three times as long
    to make.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
