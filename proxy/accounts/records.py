"""Users and keys as the database stores them.  Times are microseconds since 1970, UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from proxy.settings.server import ChainName
from proxy.types import JSON, Caller

Role: TypeAlias = Literal["user", "admin"]
SECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class User:
    """disabled: the time since when none of the user's keys works; None if they do."""

    id: str
    name: str
    role: Role
    metadata: Mapping[str, str]
    created: int
    disabled: int | None = None

    def as_json(self) -> dict[str, JSON]:
        """The user in the API's form, with times in seconds."""
        return {
            "object": "user",
            "id": self.id,
            "name": self.name,
            "role": self.role,
            "metadata": dict(self.metadata),
            "created_at": self.created // SECOND,
            "disabled_at": seconds(self.disabled),
        }


@dataclass(frozen=True, slots=True)
class Key:
    """A key's record, without the key itself.

    user: its owner's name.  prefix: its first characters, by which people recognise it.
    models, routes: patterns of models and names of chains that it may use; None means all.
    """

    id: str
    user: str
    name: str
    prefix: str
    role: Role
    models: tuple[str, ...] | None
    routes: tuple[ChainName, ...] | None
    metadata: Mapping[str, str]
    created: int
    expires: int | None = None
    revoked: int | None = None
    last_used: int | None = None

    def as_json(self) -> dict[str, JSON]:
        """The key in the API's form, with times in seconds."""
        return {
            "object": "key",
            "id": self.id,
            "user": self.user,
            "name": self.name,
            "prefix": self.prefix,
            "role": self.role,
            "models": self.models,
            "routes": self.routes,
            "metadata": dict(self.metadata),
            "created_at": self.created // SECOND,
            "expires_at": seconds(self.expires),
            "revoked_at": seconds(self.revoked),
            "last_used_at": seconds(self.last_used),
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key to create.  expires: microseconds since 1970; None means never."""

    user: str
    name: str = ""
    role: Role = "user"
    models: tuple[str, ...] | None = None
    routes: tuple[ChainName, ...] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    expires: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The caller of a key that was found in the database.

    refusal: why the key does not work, such as `has expired`; "" if it works.
    expires: microseconds since 1970; None means never.
    """

    caller: Caller
    expires: int | None
    refusal: str = ""


def seconds(micros: int | None) -> int | None:
    return None if micros is None else micros // SECOND
