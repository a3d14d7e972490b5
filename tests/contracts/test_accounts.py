"""The contract of users and keys, for every kind of database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from proxy.accounts import keys
from proxy.accounts.records import SECOND, Found, Key, Wanted
from proxy.accounts.secret import OtherSecret
from proxy.accounts.store import Store
from proxy.accounts.tables import METADATA, SECRETS, TABLES
from proxy.errors import BadCall, NotFound
from proxy.sql.database import Database
from tests.clocks import Watch

SECRET, OTHER = b"a secret of the tests", b"another secret"
ALICE = Wanted("alice", "laptop", "user", ("gemma*",), ("chat",), {"team": "blue"})


@pytest.fixture
async def store(new_database_url: str) -> AsyncIterator[Store]:
    async with opened(new_database_url) as store:
        yield store


class opened:
    """The store, with its own connections to the database."""

    def __init__(self, url: str) -> None:
        self.database = Database(url, 3, 30)

    async def __aenter__(self) -> Store:
        await self.database.migrate(TABLES)
        return Store(lambda: self.database, Watch())

    async def __aexit__(self, *_: object) -> None:
        await self.database.aclose()


async def found(store: Store, key: str) -> Found | None:
    hash = keys.hash_of(key, SECRET)
    return (await store.find([hash, "0" * 64])).get(hash)


async def created(store: Store, wanted: Wanted = ALICE) -> tuple[str, Key]:
    return await store.create(wanted, SECRET, with_user=True)


def watch(store: Store) -> Watch:
    assert isinstance(store.clock, Watch)
    return store.clock


async def test_the_migrations_create_the_tables_that_the_code_uses(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import Connection

    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"version_table": "accounts_version"})
        return list(compare_metadata(context, METADATA))

    async with store.database.reading() as connection:
        assert [one for one in await connection.run_sync(differences) if "accounts_version" not in str(one)] == []


async def test_a_key_is_found_by_its_hash_with_the_access_it_was_created_with(store: Store) -> None:
    key, kept = await created(store)
    assert key.startswith(kept.prefix) and len(kept.prefix) == 17 and len(key) >= 11 + 43
    told = await found(store, key)
    assert told is not None and told.refusal == ""
    caller = told.caller
    assert (caller.name, caller.role, caller.key) == ("alice", "user", kept.id)
    assert (caller.models, caller.routes) == (("gemma*",), frozenset({"chat"}))
    assert await found(store, key + "x") is None and await found(store, key[:-1]) is None


async def test_the_key_itself_is_not_in_the_database(store: Store) -> None:
    key, _ = await created(store)
    async with store.database.reading() as connection:
        for table in METADATA.tables.values():
            rows = (await connection.execute(table.select())).all()
            assert key not in str(rows) and key[20:] not in str(rows)


async def test_a_key_is_refused_once_it_expires_is_revoked_or_its_user_is_disabled(store: Store) -> None:
    lasting, one = await created(store)
    ending, _ = await created(store, replace(ALICE, expires=store.now() + 10 * SECOND))

    async def refusals() -> list[str]:
        return [told.refusal for key in (lasting, ending) if (told := await found(store, key))]

    assert await refusals() == ["", ""]
    watch(store).move(10)
    assert await refusals() == ["", "has expired"]
    await store.change_user("alice", {"disabled": True})
    assert "disabled" in (await refusals())[0]
    await store.change_user("alice", {"disabled": False})
    assert (await refusals())[0] == ""
    first = await store.revoke(one.id)
    watch(store).move(10)
    assert (await store.revoke(one.id)).revoked == first.revoked
    assert (await refusals())[0] == "was revoked"


async def test_a_key_gives_no_more_access_than_its_user_has(store: Store) -> None:
    key, _ = await created(store, Wanted("root", role="admin"))
    told = await found(store, key)
    assert told is not None and told.caller.is_admin
    await store.change_user("root", {"role": "user"})
    told = await found(store, key)
    assert told is not None and not told.caller.is_admin
    with pytest.raises(BadCall):
        await store.create(Wanted("root", role="admin"), SECRET)


async def test_a_key_needs_a_user_and_user_names_are_unique(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.create(ALICE, SECRET)
    await store.add_user("alice", "user", {})
    with pytest.raises(BadCall, match="already"):
        await store.add_user("alice", "admin", {})
    with pytest.raises(NotFound):
        await store.revoke("key_nowhere")
    with pytest.raises(NotFound):
        await store.change_user("bob", {"role": "admin"})


async def test_lists_are_paged_from_the_newest_without_gaps(store: Store) -> None:
    made = []
    for number in range(7):
        watch(store).move(number % 2)  # some of them in the same second
        made.append((await created(store, replace(ALICE, user="bob" if number == 3 else "alice")))[1].id)
    listed: list[Key] = []
    while part := await store.keys(3, listed[-1].id if listed else None, None):
        listed += part
    assert sorted(one.id for one in listed) == sorted(made)
    times = [one.created for one in listed]
    assert times == sorted(times, reverse=True)
    assert [one.id for one in await store.keys(100, None, "bob")] == [made[3]]
    assert sorted(one.name for one in await store.users(10, None)) == ["alice", "bob"]
    with pytest.raises(BadCall):
        await store.keys(3, "key_nowhere", None)


async def test_deleting_a_user_deletes_its_keys(store: Store) -> None:
    key, _ = await created(store)
    await store.remove_user("alice")
    assert await found(store, key) is None and await store.keys(10, None, None) == []
    with pytest.raises(NotFound):
        await store.user("alice")


async def test_deleting_a_user_while_keys_are_created_leaves_no_keys(store: Store) -> None:
    wanted = Wanted("alice")
    for _ in range(20):
        await store.add_user("alice", "user", {})
        making = [store.create(wanted, SECRET) for _ in range(3)]
        told = await asyncio.gather(making[0], store.remove_user("alice"), *making[1:], return_exceptions=True)
        assert {type(one) for one in told if isinstance(one, BaseException)} <= {NotFound}
        assert await store.keys(10, None, None) == []


async def test_a_last_use_never_goes_backwards(store: Store) -> None:
    _, kept = await created(store)
    await store.used({kept.id: 2_000_000, "key_gone": 1})
    await store.used({kept.id: 1_000_000})
    assert (await store.key(kept.id)).last_used == 2_000_000


async def test_of_several_processes_one_creates_the_secret_and_the_first_key(new_database_url: str) -> None:
    several = [opened(new_database_url) for _ in range(4)]
    stores = await asyncio.gather(*(one.__aenter__() for one in several))
    try:
        secrets = await asyncio.gather(*(store.secret() for store in stores))
        assert len(set(secrets)) == 1 and len(secrets[0]) == 32
        made = [key for key in await asyncio.gather(*(store.bootstrap(SECRET) for store in stores)) if key]
        assert len(made) == 1
        told = await found(stores[0], made[0])
        assert told is not None and told.caller.is_admin and told.caller.name == "admin"
    finally:
        for one in several:
            await one.__aexit__()


async def test_a_new_first_key_is_created_only_when_no_admin_has_a_valid_one(store: Store) -> None:
    key = await store.bootstrap(SECRET)
    assert key is not None and await store.bootstrap(SECRET) is None
    await store.change_user("admin", {"disabled": True})
    again = await store.bootstrap(SECRET)
    assert again is not None
    told = await found(store, again)
    assert told is not None and told.caller.is_admin and told.refusal == ""


@pytest.mark.parametrize("closed", [{"disabled": True}, {"role": "user"}])
async def test_keys_of_a_disabled_or_demoted_admin_stay_blocked_after_a_new_first_key(
    store: Store, closed: dict[str, object]
) -> None:
    leaked = await store.bootstrap(SECRET)
    low, _ = await store.create(Wanted("admin"), SECRET)
    await store.change_user("admin", closed)
    assert leaked is not None and await store.bootstrap(SECRET) is not None
    for key, ended in ((leaked, True), (low, "disabled" in closed)):
        told = await found(store, key)
        assert told is not None and bool(told.refusal) is ended


async def test_valid_keys_all_belong_to_one_secret(store: Store) -> None:
    key, kept = await created(store)
    for asked in (store.create(ALICE, OTHER), store.bootstrap(OTHER), store.settle(OTHER)):
        with pytest.raises(OtherSecret, match=r"still working: 1.*keys revoke --all"):
            await asked
    await store.settle(SECRET)
    assert [one.id for one in await store.keys(9, None, None)] == [kept.id] and await found(store, key) is not None


@pytest.mark.parametrize("how", ["revoked", "expired", "removed"])
async def test_the_secret_may_change_once_no_key_is_valid(store: Store, how: str) -> None:
    await created(store, replace(ALICE, expires=store.now() + SECOND))
    if how == "revoked":
        assert await store.revoke_all() == 1 and await store.revoke_all() == 0
    elif how == "removed":
        await store.remove_user("alice")
    else:
        watch(store).move(2)
    await store.settle(OTHER)
    assert await store.bootstrap(OTHER) is not None
    with pytest.raises(OtherSecret):
        await created(store)


async def test_keys_from_before_secrets_were_marked_count_as_the_servers(store: Store) -> None:
    await created(store)
    async with store.database.writing() as connection:
        await connection.execute(SECRETS.delete())
    await store.create(ALICE, OTHER)  # as if by a command with an unknown secret
    await store.settle(SECRET)
    with pytest.raises(OtherSecret):
        await store.create(ALICE, OTHER)
    await created(store)


async def test_of_servers_that_start_at_once_with_different_secrets_one_wins(new_database_url: str) -> None:
    several = [opened(new_database_url) for _ in range(6)]
    stores = await asyncio.gather(*(one.__aenter__() for one in several))
    try:

        async def begun(store: Store, secret: bytes) -> bytes:
            await store.settle(secret)
            await store.create(Wanted("root", role="admin"), secret, with_user=True)
            return secret

        begins = (begun(one, SECRET if at % 2 else OTHER) for at, one in enumerate(stores))
        told = await asyncio.gather(*begins, return_exceptions=True)
        secrets = [one for one in told if isinstance(one, bytes)]
        assert len(secrets) == 3 == len(await stores[0].keys(9, None, None)) and len(set(secrets)) == 1
        assert {type(one) for one in told} == {bytes, OtherSecret}
    finally:
        for one in several:
            await one.__aexit__()


async def test_the_stored_mark_does_not_reveal_the_secret(store: Store) -> None:
    await store.settle(SECRET)
    async with store.database.reading() as connection:
        (mark,) = (await connection.execute(SECRETS.select())).all()
    assert len(mark.value) == 4, "it must be too short to identify the secret"
    assert mark.value not in (keys.hash_of("", SECRET)[:4], SECRET.hex()[:4])
