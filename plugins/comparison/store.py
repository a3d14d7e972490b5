"""Comparisons in the database.  Every query for a caller filters by owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, delete, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.comparison.forms import Page
from plugins.comparison.results import Compared, Judgement, Result, unknown
from plugins.comparison.tables import JUDGEMENTS, RESULTS, ROUNDS
from proxy.errors import NotFound
from proxy.host import Host
from proxy.records import Records
from proxy.types import JSON

R: Final = ROUNDS.c
KEPT: Final = tuple(one.name for one in fields(Result))
SHORT: Final = tuple(name for name in KEPT if name not in ("response", "thinking", "sources"))
"""Columns of a result without its text."""
BEGINNING: Final = 2000
"""Characters of a question that lists contain."""
LONG: Final = ("prompt", "asked")
HEAD: Final = (
    *(one for one in R if one.name not in LONG),
    func.substr(R.prompt, 1, BEGINNING).label("prompt"),
    literal("{}").label("asked"),
)
"""Columns of a comparison without the long ones."""


def mine(owner: str, id: str) -> ColumnElement[bool]:
    return (R.owner == owner) & (R.id == id)


@dataclass(frozen=True, slots=True)
class Limits:
    """comparisons: per caller, beyond which the oldest are deleted.  bytes: stored of one comparison."""

    comparisons: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Store(Records):
    host: Host
    most: Limits

    async def ready(self) -> None:
        """Raises DatabaseAway if the database is unavailable; called before any model is."""
        async with self.database.reading() as connection:
            await connection.execute(select(R.number).limit(1))

    async def add(self, made: Compared) -> Compared:
        """Store a comparison; gives it as stored, shortened if it is too long."""
        results = fitted(made.results, self.most.bytes)
        asked = orjson.dumps(made.asked).decode()
        size = len(asked.encode()) + sum(size_of(one) for one in results)
        row = {name: getattr(made, name) for name in ("id", "owner", "at", "prompt", "vote")}
        async with self.database.writing() as connection:
            done = await connection.execute(
                insert(ROUNDS).values(row | {"asked": asked, "blind": int(made.blind), "bytes": size})
            )
            number = int((done.inserted_primary_key or (0,))[0])
            rows = [row_of(one) | {"comparison": number, "place": place} for place, one in enumerate(results)]
            await connection.execute(insert(RESULTS), rows)
            await self.trim(connection, made.owner)
        return made.but(number=number, results=results)

    async def trim(self, connection: AsyncConnection, owner: str) -> None:
        """Delete the oldest comparisons beyond the caller's limit."""
        newest = select(R.number).where(R.owner == owner).order_by(R.number.desc()).offset(self.most.comparisons)
        old = (await connection.execute(newest.limit(1))).scalar()
        if old is not None:
            some = select(R.number).where(R.owner == owner, R.number <= old).order_by(R.number).limit(100)
            await self.remove(connection, (await connection.execute(some)).scalars().all())

    async def remove(self, connection: AsyncConnection, numbers: Sequence[int]) -> int:
        """Delete comparisons; the database cascades to their rows, so that locks are taken in the same order."""
        return int((await connection.execute(delete(ROUNDS).where(R.number.in_(numbers)))).rowcount)

    async def drop(self, owner: str, id: str) -> None:
        """Delete one comparison.  Raises NotFound."""
        async with self.database.writing() as connection:
            number = (await connection.execute(select(R.number).where(mine(owner, id)))).scalar()
            if number is None or not await self.remove(connection, [number]):
                raise unknown(id)

    async def one(self, owner: str, id: str) -> Compared:
        """One comparison with all its text.  Raises NotFound."""
        async with self.database.reading() as connection:
            found = await self.found(connection, mine(owner, id), 1)
        if not found:
            raise unknown(id)
        return found[0]

    async def page(self, owner: str, asked: Page, whole: bool = False) -> tuple[list[Compared], bool]:
        """A page of comparisons, and whether there are more.

        whole: with all text, else only with the beginning of the question.  Raises NotFound for an unknown `after`.
        """
        which = R.owner == owner
        async with self.database.reading() as connection:
            if asked.after is not None:
                after = (await connection.execute(select(R.number).where(mine(owner, asked.after)))).scalar()
                if after is None:
                    message = f"Nothing of yours has the id '{asked.after}'."
                    raise NotFound(message, param="after", code="comparison_not_found")
                which &= R.number > after if asked.order == "asc" else R.number < after
            found = await self.found(connection, which, asked.limit + 1, asked.order == "asc", whole)
        return found[: asked.limit], len(found) > asked.limit

    async def following(self, owner: str, last: int, limit: int) -> list[Compared]:
        """The oldest comparisons, with all text, whose number is above `last`, which may have been deleted."""
        async with self.database.reading() as connection:
            return await self.found(connection, (R.owner == owner) & (R.number > last), limit, rising=True)

    async def found(
        self,
        connection: AsyncConnection,
        which: ColumnElement[bool],
        limit: int,
        rising: bool = False,
        whole: bool = True,
    ) -> list[Compared]:
        query = select(*(R if whole else HEAD)).where(which).order_by(R.number if rising else R.number.desc())
        heads = (await connection.execute(query.limit(limit))).mappings().all()
        numbers = [one["number"] for one in heads]
        results: dict[int, list[Result]] = {number: [] for number in numbers}
        columns = [RESULTS.c[name] for name in (KEPT if whole else SHORT)]
        answers = select(RESULTS.c.comparison, *columns).where(RESULTS.c.comparison.in_(numbers))
        for row in (await connection.execute(answers.order_by(RESULTS.c.comparison, RESULTS.c.place))).mappings():
            results[row["comparison"]].append(result_of({**row}))
        judgements: dict[int, list[Judgement]] = {number: [] for number in numbers}
        places = (JUDGEMENTS.c.judge, JUDGEMENTS.c.one, JUDGEMENTS.c.other)
        told = select(JUDGEMENTS).where(JUDGEMENTS.c.comparison.in_(numbers)).order_by(JUDGEMENTS.c.comparison, *places)
        for row in (await connection.execute(told)).mappings():
            judgements[row["comparison"]].append(judgement_of({**row}))
        return [
            compared_of({**one}, results[one["number"]], judgements[one["number"]])
            for one in heads
            if results[one["number"]]  # else it has just been deleted
        ]

    async def vote(self, compared: Compared, vote: int) -> Compared:
        """Raises NotFound if the comparison has been deleted."""
        changed = update(ROUNDS).where(mine(compared.owner, compared.id)).values(vote=vote)
        await self.change(compared, changed)
        return compared.but(vote=vote)

    async def rate(self, compared: Compared, place: int, rating: int) -> Compared:
        """Raises NotFound if the comparison has been deleted."""
        whose = select(R.number).where(mine(compared.owner, compared.id))  # not by number: SQLite reuses those
        here = RESULTS.c.comparison.in_(whose) & (RESULTS.c.place == place)
        await self.change(compared, update(RESULTS).where(here).values(rating=rating))
        results = list(compared.results)
        results[place] = replace(results[place], rating=rating)
        return compared.but(results=results)

    async def change(self, compared: Compared, changed: Any) -> None:
        async with self.database.writing() as connection:
            if not (await connection.execute(changed)).rowcount:
                raise unknown(compared.id)

    async def judged(self, compared: Compared, judgements: Sequence[Judgement]) -> Compared:
        """Replace the same judge's earlier judgements.  Raises NotFound if the comparison has been deleted."""
        judge, places = judgements[0].judge, ("judge", "one", "other", "winner", "criteria", "error", "at")
        rows = [
            {name: getattr(one, name) for name in places}
            | {"comparison": compared.number, "agreed": int(one.agreed), "reasons": orjson.dumps(one.reasons).decode()}
            for one in judgements
        ]
        before = (JUDGEMENTS.c.comparison == compared.number) & (JUDGEMENTS.c.judge == judge)
        here = select(R.number).where(mine(compared.owner, compared.id)).with_for_update()
        async with self.database.writing() as connection:
            if (await connection.execute(here)).scalar() is None:
                raise unknown(compared.id)
            await connection.execute(delete(JUDGEMENTS).where(before))
            await connection.execute(insert(JUDGEMENTS), rows)
        others = [one for one in compared.judgements if one.judge != judge]
        return compared.but(judgements=[*others, *judgements])


def row_of(one: Result) -> dict[str, Any]:
    whole = {name: getattr(one, name) for name in KEPT} | {"sources": text_of(one.sources)}
    return whole | {name: int(whole[name]) for name in ("success", "cached", "cut")}


def result_of(row: Mapping[str, Any]) -> Result:
    told = {name: row[name] for name in KEPT if name in row}
    told["sources"] = tuple(orjson.loads(told.get("sources") or "[]"))
    return Result(**told | {name: bool(told[name]) for name in ("success", "cached", "cut")})


def judgement_of(row: Mapping[str, Any]) -> Judgement:
    names = ("judge", "one", "other", "winner", "criteria", "error", "at")
    told = {name: row[name] for name in names}
    return Judgement(**told, agreed=bool(row["agreed"]), reasons=tuple(orjson.loads(row["reasons"] or "[]")))


def compared_of(row: Mapping[str, Any], results: Sequence[Result], judgements: Sequence[Judgement]) -> Compared:
    names = ("id", "owner", "at", "prompt", "vote", "number")
    told = {name: row[name] for name in names} | {"asked": orjson.loads(row["asked"]), "blind": bool(row["blind"])}
    return Compared(**told, results=results, judgements=judgements)


def text_of(sources: Sequence[Mapping[str, JSON]]) -> str:
    return orjson.dumps(sources).decode() if sources else ""


def size_of(one: Result) -> int:
    return sum(len(text.encode()) for text in (one.response, one.thinking, text_of(one.sources)))


def fitted(results: Sequence[Result], most: int) -> list[Result]:
    """The results within `most` bytes together.  If they exceed that, each longer than an equal share is shortened,
    keeping its answer before its thinking and its sources."""
    if sum(map(size_of, results)) <= most:
        return list(results)
    share = most // len(results)
    return [one if size_of(one) <= share else shortened(one, share) for one in results]


def shortened(one: Result, most: int) -> Result:
    response = one.response.encode()[:most].decode(errors="ignore")
    thinking = one.thinking.encode()[: most - len(response.encode())].decode(errors="ignore")
    words = replace(one, response=response, thinking=thinking, cut=True)
    return words if size_of(words) <= most else replace(words, sources=())
