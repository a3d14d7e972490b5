"""Reads and writes users and keys in the database.  Every method may raise DatabaseAway."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from sqlalchemy import ColumnElement, RowMapping, Select, Table, and_, delete, insert, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.accounts import keys
from proxy.accounts.records import Found, Key, Role, User, Wanted
from proxy.accounts.secret import agree, agreed, locked, own_secret, works
from proxy.accounts.tables import KEYS, USERS
from proxy.clock import Clock
from proxy.errors import BadCall, NotFound
from proxy.sql.database import Database
from proxy.types import Caller
from proxy.wire.ids import new_id

ROOT: Final = "admin"
"""The user that owns the first admin key."""
Row: TypeAlias = RowMapping | Mapping[str, Any]
LISTED: Final = select(KEYS, USERS.c.name.label("user")).join(USERS, USERS.c.id == KEYS.c.user_id)


class Store:
    """opened: gives the database."""

    def __init__(self, opened: Callable[[], Database], clock: Clock) -> None:
        self.opened = opened
        self.clock = clock

    @property
    def database(self) -> Database:
        return self.opened()

    def now(self) -> int:
        return int(self.clock.time() * 1_000_000)

    # --- the server's secret, and its first key --------------------------------------------------------

    async def secret(self) -> bytes:
        """The secret in the database, created on first use."""
        async with self.database.writing() as connection:
            return await own_secret(connection)

    async def settle(self, secret: bytes) -> None:
        """Check that a server may use this secret.  Raises OtherSecret."""
        async with self.database.reading() as connection:  # a starting server must not block those that write
            if await agreed(connection, secret):
                return
        async with self.database.writing() as connection:
            await locked(connection)
            await agree(connection, secret, self.now(), serving=True)

    async def bootstrap(self, secret: bytes, root: str = ROOT) -> str | None:
        """Create an admin key for the user of this name if no working one exists; gives it, else None."""
        async with self.database.writing() as connection:
            await locked(connection)
            admins = and_(KEYS.c.role == "admin", USERS.c.role == "admin", USERS.c.disabled.is_(None))
            if (await connection.execute(LISTED.where(admins, works(self.now())).limit(1))).first() is not None:
                return None
            user = await self.ensured(connection, root, "admin")
            await self.end_keys(connection, user)
            changed = update(USERS).where(USERS.c.id == user.id).values(role="admin", disabled=None)
            await connection.execute(changed)
            key, _ = await self.made(connection, Wanted(root, "first key", "admin"), user, secret)
        return key

    async def end_keys(self, connection: AsyncConnection, user: User) -> None:
        """Revoke a user's keys that would otherwise work again when the user is made an admin: the admin ones, or all
        if the user is disabled.  One of them may be the reason why the user lost the role."""
        closed = and_(KEYS.c.user_id == user.id, KEYS.c.revoked.is_(None))
        if user.disabled is None:
            closed = and_(closed, KEYS.c.role == "admin")
        await connection.execute(update(KEYS).where(closed).values(revoked=self.now()))

    # --- keys ------------------------------------------------------------------------------------------

    async def create(self, wanted: Wanted, secret: bytes, *, with_user: bool = False) -> tuple[str, Key]:
        """Create a key; gives the key itself, which is not stored, and its record.

        with_user: create the user too if it does not exist.  Raises NotFound, BadCall or OtherSecret.
        """
        async with self.database.writing() as connection:
            await locked(connection)
            if with_user:
                user = await self.ensured(connection, wanted.user, wanted.role)
            else:
                user = await self.one_user(connection, wanted.user)
            if wanted.role == "admin" != user.role:
                message = f"'{user.name}' has the role 'user', so its key cannot be an admin's; make it an admin first."
                raise BadCall(message, param="role", code="invalid_value")
            return await self.made(connection, wanted, user, secret)

    async def made(self, connection: AsyncConnection, wanted: Wanted, user: User, secret: bytes) -> tuple[str, Key]:
        key, now = keys.new_key(), self.now()
        await agree(connection, secret, now, serving=False)
        row = {
            "id": new_id("key_"),
            "name": wanted.name,
            "prefix": keys.prefix_of(key),
            "role": wanted.role,
            "models": listed(wanted.models),
            "routes": listed(wanted.routes),
            "metadata": dict(wanted.metadata),
            "created": now,
            "expires": wanted.expires,
        }
        kept = {**row, "user_id": user.id, "hash": keys.hash_of(key, secret)}
        await connection.execute(insert(KEYS).values(kept))
        return key, key_of({**row, "user": user.name})

    async def key(self, id: str) -> Key:
        """Raises NotFound."""
        async with self.database.reading() as connection:
            return await self.one_key(connection, id)

    async def one_key(self, connection: AsyncConnection, id: str) -> Key:
        row = (await connection.execute(LISTED.where(KEYS.c.id == id))).mappings().first()
        if row is None:
            raise NotFound(f"There is no key '{id[:100]}'.", code="key_not_found")
        return key_of(row)

    async def keys(self, limit: int, after: str | None, user: str | None) -> list[Key]:
        """Keys, newest first, after the one with the id `after`.  user: a name or an id; None means all users."""
        wanted = LISTED
        if user is not None:
            wanted = wanted.where(or_(USERS.c.name == user, USERS.c.id == user))
        return [key_of(row) for row in await self.page(wanted, KEYS, limit, after)]

    async def revoke(self, id: str) -> Key:
        """Revoke a key; gives its record.  Raises NotFound."""
        open_ = and_(KEYS.c.id == id, KEYS.c.revoked.is_(None))
        async with self.database.writing() as connection:
            await connection.execute(update(KEYS).where(open_).values(revoked=self.now()))
            return await self.one_key(connection, id)

    async def revoke_all(self) -> int:
        """Revoke all keys, also those made with another secret; gives how many there were."""
        async with self.database.writing() as connection:
            await locked(connection)  # so that no key is created meanwhile
            every = update(KEYS).where(KEYS.c.revoked.is_(None)).values(revoked=self.now())
            return (await connection.execute(every)).rowcount

    async def find(self, hashes: Sequence[str]) -> Mapping[str, Found]:
        """The caller of each key, by the key's hash; unknown hashes are left out."""
        wanted = LISTED.add_columns(USERS.c.role.label("most"), USERS.c.disabled).where(KEYS.c.hash.in_(hashes))
        async with self.database.reading() as connection:
            rows = (await connection.execute(wanted)).mappings().all()
        now = self.now()
        return {row["hash"]: found_of(row, now) for row in rows}

    async def used(self, times: Mapping[str, int]) -> None:
        """Write when keys were last used.  times: by id, microseconds since 1970."""
        later = text(
            "UPDATE accounts_keys SET last_used = :at WHERE id = :id AND (last_used IS NULL OR last_used < :at)"
        )
        async with self.database.writing() as connection:
            # Always in the same order, so that two processes cannot deadlock.
            await connection.execute(later, [{"id": id, "at": at} for id, at in sorted(times.items())])

    # --- users -----------------------------------------------------------------------------------------

    async def add_user(self, name: str, role: str, metadata: Mapping[str, str]) -> User:
        """Create a user.  Raises BadCall if the name is taken."""
        async with self.database.writing() as connection:
            await locked(connection)
            if (await connection.execute(select(USERS.c.id).where(USERS.c.name == name))).first() is not None:
                raise BadCall(f"There is a user '{name}' already.", param="name", code="name_taken")
            return await self.new_user(connection, name, role, metadata)

    async def new_user(self, connection: AsyncConnection, name: str, role: str, metadata: Mapping[str, str]) -> User:
        row = {"id": new_id("user_"), "name": name, "role": role, "metadata": dict(metadata), "created": self.now()}
        await connection.execute(insert(USERS).values(row))
        return user_of(row)

    async def ensured(self, connection: AsyncConnection, name: str, role: str) -> User:
        """The user of this name, created with this role if it does not exist."""
        row = (await connection.execute(select(USERS).where(USERS.c.name == name))).mappings().first()
        return user_of(row) if row is not None else await self.new_user(connection, name, role, {})

    async def user(self, who: str) -> User:
        """who: a name or an id.  Raises NotFound."""
        async with self.database.reading() as connection:
            return await self.one_user(connection, who)

    async def one_user(self, connection: AsyncConnection, who: str) -> User:
        row = (await connection.execute(select(USERS).where(named(who)))).mappings().first()
        if row is None:
            raise NotFound(f"There is no user '{who[:100]}'.", param="user", code="user_not_found")
        return user_of(row)

    async def users(self, limit: int, after: str | None) -> list[User]:
        """Users, newest first, after the one with the id `after`."""
        return [user_of(row) for row in await self.page(select(USERS), USERS, limit, after)]

    async def names(self, of: Sequence[str]) -> list[str]:
        """Those of these names that belong to users."""
        async with self.database.reading() as connection:
            found = await connection.execute(select(USERS.c.name).where(USERS.c.name.in_(of)))
            return sorted(found.scalars())

    async def change_user(self, who: str, changes: Mapping[str, Any]) -> User:
        """changes: of `role`, `metadata`, and `disabled` as true or false.  Raises NotFound."""
        values = dict(changes)
        async with self.database.writing() as connection:
            user = await self.one_user(connection, who)
            if "disabled" in values:
                values["disabled"] = (user.disabled or self.now()) if values["disabled"] else None
            if values:
                await connection.execute(update(USERS).where(USERS.c.id == user.id).values(values))
            return await self.one_user(connection, user.id)

    async def remove_user(self, who: str) -> User:
        """Delete a user and all its keys.  Raises NotFound."""
        async with self.database.writing() as connection:
            await locked(connection)  # so that no key is created for it meanwhile
            user = await self.one_user(connection, who)
            await connection.execute(delete(KEYS).where(KEYS.c.user_id == user.id))
            await connection.execute(delete(USERS).where(USERS.c.id == user.id))
        return user

    async def page(self, wanted: Select[Any], of: Table, limit: int, after: str | None) -> Sequence[Row]:
        """A page of rows, newest first.  Raises BadCall if there is no row with the id `after`."""
        async with self.database.reading() as connection:
            if after is not None:
                last = (await connection.execute(select(of.c.created).where(of.c.id == after))).scalar()
                if last is None:
                    raise BadCall(f"Invalid 'after': there is no '{after[:100]}'.", param="after", code="invalid_value")
                behind = or_(of.c.created < last, and_(of.c.created == last, of.c.id < after))
                wanted = wanted.where(behind)
            newest = wanted.order_by(of.c.created.desc(), of.c.id.desc()).limit(limit)
            rows: Sequence[Row] = (await connection.execute(newest)).mappings().all()
            return rows


def named(who: str) -> ColumnElement[bool]:
    return or_(USERS.c.name == who, USERS.c.id == who)


def listed(names: tuple[str, ...] | None) -> list[str] | None:
    return None if names is None else list(names)


def user_of(row: Row) -> User:
    return User(row["id"], row["name"], row["role"], row["metadata"], row["created"], row.get("disabled"))


def key_of(row: Row) -> Key:
    return Key(
        row["id"],
        row["user"],
        row["name"],
        row["prefix"],
        row["role"],
        *limits_of(row),
        row["metadata"],
        row["created"],
        row["expires"],
        row.get("revoked"),
        row.get("last_used"),
    )


def limits_of(row: Row) -> tuple[Any, Any]:
    """The models and the routes of a key."""
    models, routes = (None if row[one] is None else tuple(row[one]) for one in ("models", "routes"))
    return models, routes


def found_of(row: Row, now: int) -> Found:
    models, routes = limits_of(row)
    role: Role = "admin" if row["role"] == row["most"] == "admin" else "user"
    caller = Caller(row["user"], role, row["id"], models, None if routes is None else frozenset(routes))
    return Found(caller, row["expires"], refusal_of(row, now))


def refusal_of(row: Row, now: int) -> str:
    if row["revoked"] is not None:
        return "was revoked"
    if row["disabled"] is not None:
        return "belongs to a user who is disabled"
    return "has expired" if row["expires"] is not None and row["expires"] <= now else ""
