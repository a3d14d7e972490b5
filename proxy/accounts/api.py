"""The admins' endpoints for users and keys, under `/api/admin`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import orjson
from aiohttp import web
from pydantic import AfterValidator, Field, PositiveInt, model_validator

from proxy.accounts.accounts import Accounts
from proxy.accounts.records import SECOND, Key, Role, User, Wanted
from proxy.errors import BadCall, NotFound
from proxy.host import RequestReader
from proxy.settings import Strict
from proxy.settings.server import ChainName
from proxy.types import JSON, Route

NAME: Final = re.compile(r"(?!user_)[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
SANE: Final = re.compile(r"[!-~]{1,128}")
RESERVED: Final = frozenset({"anonymous"})
"""Names of unauthenticated callers."""
PAGE: Final = 20
MOST: Final = 100
"""Default and maximum number of entries on a page."""
AGES: Final = 10**10
"""An upper bound of times and durations, in seconds."""


def check_name(name: str) -> str:
    """The name.  Raises ValueError if it is not valid for a user."""
    if not NAME.fullmatch(name) or name.lower() in RESERVED:
        raise ValueError(
            f"{name[:100]!r} cannot be a name: 1 to 128 letters, digits and ._@+-, not beginning with user_"
        )
    return name


def check_label(text: str) -> str:
    """The text.  Raises ValueError for control characters, which would break the lines of a list."""
    if not text.isprintable():
        raise ValueError("it must not contain control characters")
    return text


Name = Annotated[str, AfterValidator(check_name)]
Who = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]
Label = Annotated[str, Field(max_length=128), AfterValidator(check_label)]
Pattern = Annotated[str, Field(min_length=1, max_length=600)]
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class NewKey(Strict):
    """expires_at: Unix seconds; expires_in: seconds from now."""

    user: Who
    name: Label = ""
    role: Role = "user"
    models: Annotated[list[Pattern], Field(min_length=1, max_length=100)] | None = None
    routes: Annotated[list[ChainName], Field(min_length=1, max_length=10)] | None = None
    metadata: Metadata = {}  # noqa: RUF012  (pydantic copies defaults)
    expires_at: Annotated[int, Field(ge=0, lt=AGES)] | None = None
    expires_in: Annotated[PositiveInt, Field(lt=AGES)] | None = None

    @model_validator(mode="after")
    def _once(self) -> NewKey:
        if self.expires_at is not None and self.expires_in is not None:
            raise ValueError("send either expires_at or expires_in")
        return self

    def wanted(self, now: float) -> Wanted:
        """The key to create.  now: Unix seconds.  Raises BadCall for a time that has passed."""
        at = self.expires_at if self.expires_in is None else int(now) + self.expires_in
        if at is not None and at <= now:
            raise BadCall("Invalid 'expires_at': that time has passed.", param="expires_at", code="invalid_value")
        models = None if self.models is None else tuple(self.models)
        routes = None if self.routes is None else tuple(self.routes)
        expires = None if at is None else at * SECOND
        return Wanted(self.user, self.name, self.role, models, routes, self.metadata, expires)


class NewUser(Strict):
    name: Name
    role: Role = "user"
    metadata: Metadata = {}  # noqa: RUF012  (pydantic copies defaults)


class Changes(Strict):
    """Changes of a user; fields that are not sent stay unchanged."""

    role: Role | None = None
    disabled: bool | None = None
    metadata: Metadata | None = None


@dataclass(frozen=True, slots=True)
class Api:
    accounts: Accounts
    requests: RequestReader

    def routes(self) -> Iterable[Route]:
        yield Route("POST", "/api/admin/keys", self.create_key)
        yield Route("GET", "/api/admin/keys", self.list_keys)
        yield Route("GET", "/api/admin/keys/{id}", self.show_key)
        yield Route("DELETE", "/api/admin/keys/{id}", self.revoke_key)
        yield Route("POST", "/api/admin/users", self.create_user)
        yield Route("GET", "/api/admin/users", self.list_users)
        yield Route("GET", "/api/admin/users/{id}", self.show_user)
        yield Route("PUT", "/api/admin/users/{id}", self.change_user)
        yield Route("DELETE", "/api/admin/users/{id}", self.remove_user)

    # --- keys ------------------------------------------------------------------------------------------

    async def create_key(self, request: web.BaseRequest) -> web.StreamResponse:
        """Create a key.  This is the only answer that contains it."""
        asked = await self.requests.form(request, NewKey)
        key, kept = await self.accounts.store.create(asked.wanted(self.accounts.clock.time()), self.accounts.secret)
        answer = document({**kept.as_json(), "key": key})
        answer.headers["Cache-Control"] = "no-store"
        return answer

    async def list_keys(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = query(request, ("limit", "after", "user"))
        limit = limit_of(asked)
        return page(await self.accounts.store.keys(limit + 1, asked.get("after"), asked.get("user")), limit)

    async def show_key(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        return document((await self.accounts.store.key(sane(id))).as_json())

    async def revoke_key(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        revoked = await self.accounts.store.revoke(sane(id))
        self.accounts.key_changed(id)
        return document(revoked.as_json())

    # --- users -----------------------------------------------------------------------------------------

    async def create_user(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = await self.requests.form(request, NewUser)
        if asked.name in self.accounts.names:
            message = f"'{asked.name}' is the name of a key under `keys:` in the configuration."
            raise BadCall(message, param="name", code="name_taken")
        return document((await self.accounts.store.add_user(asked.name, asked.role, asked.metadata)).as_json())

    async def list_users(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = query(request, ("limit", "after"))
        limit = limit_of(asked)
        return page(await self.accounts.store.users(limit + 1, asked.get("after")), limit)

    async def show_user(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        return document((await self.accounts.store.user(sane(id))).as_json())

    async def change_user(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        asked = await self.requests.form(request, Changes)
        changes = {name: value for name, value in asked.model_dump().items() if value is not None}
        user = await self.accounts.store.change_user(sane(id), changes)
        self.accounts.user_changed(user.name)
        return document(user.as_json())

    async def remove_user(self, request: web.BaseRequest, id: str) -> web.StreamResponse:
        user = await self.accounts.store.remove_user(sane(id))
        self.accounts.user_changed(user.name)
        return document({"object": "user.deleted", "id": user.id, "deleted": True})


def sane(id: str) -> str:
    """The name or id.  Raises NotFound if it cannot be one, because not every database accepts every character."""
    if not SANE.fullmatch(id):
        raise NotFound("There is no such thing.", code="not_found")
    return id


def query(request: web.BaseRequest, known: Sequence[str]) -> Mapping[str, str]:
    """The URL's query.  Raises BadCall for an unknown parameter: ignoring a filter would show too much."""
    for name in request.query:
        if name not in known:
            raise BadCall(f"Unknown parameter: '{name[:100]}'.", param=name[:100], code="unknown_parameter")
        if not SANE.fullmatch(request.query[name]):
            raise BadCall(
                f"Invalid '{name}': it contains characters that are not allowed.", param=name, code="invalid_value"
            )
    return request.query


def limit_of(asked: Mapping[str, str]) -> int:
    told = asked.get("limit", str(PAGE))
    if not re.fullmatch(r"[0-9]{1,3}", told) or not 1 <= int(told) <= MOST:
        message = f"Invalid 'limit': a whole number from 1 to {MOST} is expected."
        raise BadCall(message, param="limit", code="invalid_value")
    return int(told)


def page(found: Sequence[Key] | Sequence[User], limit: int) -> web.Response:
    """A page of a list.  found: one entry more than `limit` if there are more."""
    shown = found[:limit]
    ends = {"first_id": shown[0].id if shown else None, "last_id": shown[-1].id if shown else None}
    told = [one.as_json() for one in shown]
    return document({"object": "list", "data": told, **ends, "has_more": len(found) > limit})


def document(body: JSON) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
