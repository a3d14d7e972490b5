"""`gemmapy-proxy evaluate`: measure the quality of a running server's search with the user's own questions."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from proxy.commands.ranks import Figures, Question, figures, plot, read
from proxy.commands.shared import add_server, command, run
from proxy.errors import ConfigError

if TYPE_CHECKING:  # imported only when the command runs
    import aiohttp
    from rich.console import Console
    from rich.progress import Progress, TaskID

MIXED: Final = "mixed"
WAYS: Final = {"vectors": {"words": 0}, "words": {"words": 1}, MIXED: {}}
"""Ways of searching, with the request fields for each; `mixed` uses the server's own settings."""
LOOKED_AT: Final = 3
"""The k of hit@k for `--least` and `--misses`: the right result must be among the first k."""
BAR: Final = 40
TRIES: Final = 6
BUSY: Final = frozenset({429, 503})
LONGEST: Final = 60.0
"""Maximum seconds to wait when the server asks for a pause."""


def add(commands: Any) -> None:
    """commands: the object to which `argparse` adds parsers."""
    one = command(commands, "evaluate", "measure how well a running server finds documents, with questions of your own")
    one.add_argument("file", type=Path, metavar="FILE", help="CSV or JSON lines: question, and document or answer")
    add_server(one, "your API")
    one.add_argument("--collection", help="a collection's id or name; by default all that the key may read")
    one.add_argument(
        "--top", type=whole, default=10, metavar="N", help="results of each search to look at, up to 50; by default 10"
    )
    one.add_argument(
        "--search", type=fields, default={}, metavar="JSON", help="more fields for the body of each search"
    )
    one.add_argument("--at-once", type=whole, default=4, metavar="N", help="searches at the same time; by default 4")
    one.add_argument("--misses", action="store_true", help=f"list the questions that fail (hit@{LOOKED_AT})")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw hits by the number of results looked at")
    one.add_argument(
        "--least", type=float, metavar="SHARE", help=f"exit with 1 if the mixed hit@{LOOKED_AT} is below this"
    )
    one.set_defaults(do=evaluate)


def whole(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 50:
        raise argparse.ArgumentTypeError("it is a number from 1 to 50")
    return int(text)


def fields(text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise argparse.ArgumentTypeError('it is a JSON object, such as \'{"filter": {"year": 2024}}\'')
    return told


def evaluate(args: argparse.Namespace) -> int:
    """Gives the exit status.  Raises ConfigError if the file cannot be read or the server refuses a search."""
    questions = read(args.file)
    found = run(asked(args, questions))
    ranks = {way: [rank_of(one, results) for one, results in zip(questions, found[way], strict=True)] for way in WAYS}
    measured = {way: figures(ranks[way], args.top) for way in WAYS}
    missed = [place for place, rank in enumerate(ranks[MIXED]) if not 0 < rank <= LOOKED_AT]
    if args.plot is not None:
        draw(args.plot, measured)
    misses = [miss(questions[place], ranks, place, found[MIXED][place]) for place in missed]
    if args.json:
        print(json.dumps(document(questions, measured, misses), ensure_ascii=False, indent=2))
    else:
        show(len(questions), measured, misses if args.misses else [])
    return int(args.least is not None and measured[MIXED].hit(LOOKED_AT) < args.least)


def rank_of(one: Question, results: Sequence[Any]) -> int:
    return next((place for place, result in enumerate(results, 1) if one.fits(result)), 0)


def miss(one: Question, ranks: dict[str, list[int]], place: int, results: Sequence[Any]) -> dict[str, Any]:
    """A question whose right result is not among the first, and what was found instead."""
    told = {"question": one.text, "document": one.document or None, "answer": one.answer or None}
    first = [{name: result[name] for name in ("title", "document_id", "content")} for result in results[:LOOKED_AT]]
    return {**told, "ranks": {way: ranks[way][place] or None for way in WAYS}, "found": first}


def document(questions: Sequence[Question], measured: dict[str, Figures], misses: Sequence[Any]) -> dict[str, Any]:
    ways = {
        way: {
            **{f"hit@{most}": round(share, 4) for most, share in enumerate(one.hits, 1)},
            "mrr": round(one.mrr, 4),
            "ndcg": round(one.ndcg, 4),
        }
        for way, one in measured.items()
    }
    return {"questions": len(questions), "ways": ways, "misses": misses}


def draw(file: Path, measured: dict[str, Figures]) -> None:
    try:
        file.write_text(plot(measured), encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{file}: {error}"]) from None


def show(count: int, measured: dict[str, Figures], misses: Sequence[Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    top = len(measured[MIXED].hits)
    most = sorted({1, min(LOOKED_AT, top), min(5, top), top})
    table = Table("search", *(f"hit@{one}" for one in most), "MRR", "nDCG", title=f"{count} questions")
    for way, one in measured.items():
        table.add_row(way, *(f"{share:.3f}" for share in (*map(one.hit, most), one.mrr, one.ndcg)))
    console = Console(highlight=False)
    console.print(table)
    for rank in most:
        console.print(f"hit@{rank}")
        for way, one in measured.items():
            share = one.hit(rank)
            console.print(Text(f"  {way:8} {'█' * round(share * BAR):{BAR}} {share:.3f}"))
    for one in misses:
        tell(console, one)


def tell(console: Console, one: dict[str, Any]) -> None:
    from rich.text import Text

    wanted = " with ".join(text for text in (one["document"], one["answer"] and repr(one["answer"])) if text)
    ranks = ", ".join(f"{way} {rank or 'not found'}" for way, rank in one["ranks"].items())
    console.print(Text(f"\n{one['question']}\n  wanted: {wanted}\n  ranks: {ranks}"))
    for number, result in enumerate(one["found"], 1):
        console.print(Text(f"  {number}. {result['title']}: {' '.join(result['content'].split())[:100]}"))


async def asked(args: argparse.Namespace, questions: Sequence[Question]) -> dict[str, list[Sequence[Any]]]:
    """Send all questions; gives the results of each, in order, for each way of searching."""
    import aiohttp
    from rich.console import Console
    from rich.progress import Progress

    headers = {"Authorization": f"Bearer {args.key}"} if args.key else {}
    turns = asyncio.Semaphore(args.at_once)
    with Progress(transient=True, console=Console(file=sys.stderr)) as progress:
        bar = progress.add_task("searching", total=len(WAYS) * len(questions))
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=120)) as http:
            url = f"{args.url.rstrip('/')}/api/rag/search"
            bodies = [[body(args, one, more) for one in questions] for more in WAYS.values()]
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        [group.create_task(searched(http, url, one, turns, (progress, bar))) for one in several]
                        for several in bodies
                    ]
            except ExceptionGroup as several:  # not `except*`, in which Python before 3.11.4 would wrap it in a group
                raise several.exceptions[0] from None
    return {way: [task.result() for task in some] for way, some in zip(WAYS, tasks, strict=True)}


def body(args: argparse.Namespace, one: Question, more: dict[str, Any]) -> dict[str, Any]:
    where = {"collections": [args.collection]} if args.collection else {}
    return {**args.search, **where, "query": one.text, "top_k": args.top, **more}


async def searched(
    http: aiohttp.ClientSession,
    url: str,
    wanted: dict[str, Any],
    turns: asyncio.Semaphore,
    shown: tuple[Progress, TaskID],
) -> Sequence[Any]:
    """The results of one search.  Raises ConfigError, which says why the server did not search."""
    import aiohttp

    async with turns:
        try:
            answer = await answered(http, url, wanted)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ConfigError([f"{url}: {error or type(error).__name__}"]) from None
        except (ValueError, LookupError, TypeError):
            raise ConfigError([f"{url}: the response is not that of a search; is this the proxy?"]) from None
    progress, bar = shown
    progress.advance(bar)
    return answer


async def answered(http: aiohttp.ClientSession, url: str, wanted: dict[str, Any]) -> Sequence[Any]:
    """The results of one search, which is repeated after `Retry-After` if the server is overloaded."""
    for left in reversed(range(TRIES)):
        async with http.post(url, json=wanted) as response:
            told = await response.json(content_type=None)
            if response.status < 400:
                return list(told["results"])
            if response.status not in BUSY or not left:
                raise ConfigError([f"{wanted['query'][:80]!r}: {told['error']['message']}"])
            wait = response.headers.get("Retry-After", "")
        await asyncio.sleep(min(LONGEST, float(wait) if wait.isdecimal() else 1.0))
    raise AssertionError("the last of the tries ends")
