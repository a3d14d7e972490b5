"""An invented county as a search corpus: articles with known facts, and questions that paraphrase them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

PLACES: Final = (
    *("Porthallow", "Trevenna", "Carwick", "Lanmere", "Polbreen", "Tregarth", "Penhale", "Goonvean", "Nancarrow"),
    *(
        "Rosevear",
        "Helstow",
        "Kestle",
        "Mabyn",
        "Treloar",
        "Wendron",
        "Zelah",
        "Bosvigo",
        "Chyandour",
        "Devoran",
        "Roche",
    ),
)
THINGS: Final = (
    *("Mill", "Bridge", "Lighthouse", "Brewery", "Quarry", "Orchard", "Chapel", "Library", "Museum", "Harbour"),
    *("Theatre", "Railway", "Foundry", "Market", "Ferry", "Observatory"),
)
PEOPLE: Final = (
    *("Mabel Quill", "Jory Pascoe", "Hester Vyvyan", "Absalom Teague", "Loveday Rowe", "Silas Nance", "Tamsin Bolitho"),
    *("Digory Keast", "Wilmot Hocking", "Ursula Penrose", "Enoch Trounson", "Petronel Carne", "Gideon Laity"),
)
COLOURS: Final = ("ochre", "crimson", "teal", "ivory", "cobalt", "maroon", "olive", "saffron", "indigo", "russet")
STUFF: Final = ("granite", "slate", "larch", "cast iron", "sandstone", "brick", "copper", "elm", "flint", "oak")
MONTHS: Final = ("January", "February", "April", "May", "June", "July", "August", "September", "October", "December")
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
BEASTS: Final = ("otter", "heron", "badger", "peacock", "donkey", "goose", "raven", "hare", "tortoise", "ferret")
YEARS: Final = tuple(str(year) for year in range(1702, 1960))


@dataclass(frozen=True, slots=True)
class Fact:
    """asked: in words of the sentence; otherwise: a paraphrase that shares only the name with it."""

    section: str
    sentence: str
    asked: str
    otherwise: str
    values: Sequence[str]


FACTS: Final = (
    Fact(
        "History",
        "It was founded by {x}, who had come into money.",
        "Who founded the {name}?",
        "To whose fortune does the {name} owe its existence?",
        PEOPLE,
    ),
    Fact(
        "History",
        "The building was finished in {x}.",
        "In which year was the {name} finished?",
        "When did construction work on the {name} come to an end?",
        YEARS,
    ),
    Fact(
        "History",
        "A fire took half of it in {x}.",
        "When did a fire damage the {name}?",
        "What was the year of the blaze that burnt the {name}?",
        YEARS,
    ),
    Fact(
        "History",
        "It was sold by auction to {x}.",
        "Who bought the {name} at auction?",
        "Whose bid won when the {name} went under the hammer?",
        PEOPLE,
    ),
    Fact(
        "People",
        "For most of that century {x} looked after it alone.",
        "Who looked after the {name}?",
        "Name the {name}'s only caretaker.",
        PEOPLE,
    ),
    Fact(
        "People",
        "The painter {x} had a studio in its attic.",
        "Which painter had a studio at the {name}?",
        "Which artist worked under the roof of the {name}?",
        PEOPLE,
    ),
    Fact(
        "People",
        "The first child born there was {x}.",
        "Which child was born first at the {name}?",
        "Which baby came into the world before any other at the {name}?",
        PEOPLE,
    ),
    Fact(
        "Building",
        "Its outer walls are of {x}.",
        "What are the walls of the {name} made of?",
        "Which material is the {name}'s exterior built from?",
        STUFF,
    ),
    Fact(
        "Building",
        "The great door is painted {x}.",
        "What colour is the door of the {name}?",
        "Which hue greets people at the entrance to the {name}?",
        COLOURS,
    ),
    Fact(
        "Building",
        "The staircase is made of {x}.",
        "Of what is the staircase of the {name}?",
        "Which material are the steps inside the {name}?",
        STUFF,
    ),
    Fact(
        "Building",
        "A weathercock of {x} turns on its roof.",
        "Of what is the weathercock of the {name}?",
        "From which material is the wind vane atop the {name}?",
        STUFF,
    ),
    Fact(
        "Visitors",
        "There is a fair with dancing each {x}.",
        "When is the fair at the {name}?",
        "In which month does the {name} hold its annual festival?",
        MONTHS,
    ),
    Fact(
        "Visitors",
        "On a {x} nobody is let in.",
        "On which day is nobody let into the {name}?",
        "When in the week is the {name} closed to the public?",
        DAYS,
    ),
    Fact(
        "Visitors",
        "Guided tours are given by {x}.",
        "Who gives tours of the {name}?",
        "Who shows people around the {name}?",
        PEOPLE,
    ),
    Fact(
        "Visitors",
        "Swimming from its steps is allowed from {x} on.",
        "When is swimming allowed at the {name}?",
        "In which month does the bathing season begin at the {name}?",
        MONTHS,
    ),
    Fact(
        "Legends",
        "A ghost in the shape of a {x} walks there.",
        "What shape has the ghost of the {name}?",
        "Which animal haunts the {name} as a phantom?",
        BEASTS,
    ),
    Fact(
        "Legends",
        "Children are told that a {x} is buried under it.",
        "What is buried under the {name}?",
        "Which animal has its grave beneath the {name}?",
        BEASTS,
    ),
    Fact(
        "Legends",
        "Whoever sees a {x} there will marry soon.",
        "What must one see at the {name} to marry?",
        "Which animal at the {name} foretells a wedding?",
        BEASTS,
    ),
)
EACH: Final = 7
"""Facts per article."""
FILLER: Final = (
    "The road from the coast bends twice before it reaches the gate, and carters used to rest their horses there.",
    "In wet years the lower rooms stood under water until the drains were dug.",
    "Several letters of the time complain of the noise, others of the silence.",
    "A surveyor's map shows it as a small square with a cross beside it.",
    "The parish kept its accounts in a hand that few can read today.",
    "Opinions differ on whether the roof was ever thatched.",
    "Visitors are advised to bring boots, for the path is rarely dry.",
    "The bell that hung here was sold to pay for repairs and bought back a year later.",
    "Its cellar holds barrels, nets and a printing press without letters.",
    "From the hill behind one can see three other parishes on a clear morning.",
    "Nothing came of a plan to move it stone by stone to the county town.",
    "The garden is kept by volunteers, who meet when the weather allows it.",
    "Old photographs show more chimneys than there are now.",
    "A footpath that once led through it was closed by order of the court.",
)


@dataclass(frozen=True, slots=True)
class Article:
    title: str
    content: str


@dataclass(frozen=True, slots=True)
class Question:
    """answer: a sentence in the article with this title.  worded: whether the question uses that sentence's words."""

    text: str
    title: str
    answer: str
    worded: bool


def county(seed: int = 7) -> tuple[list[Article], list[Question]]:
    """320 articles, and two questions about a fact of each, one in its words and one paraphrased; deterministic."""
    chance = random.Random(seed)
    articles, questions = [], []
    for place in PLACES:
        for thing in THINGS:
            name = f"{place} {thing}"
            said = [
                (fact, fact.sentence.format(x=chance.choice(fact.values)))
                for fact in sorted(chance.sample(FACTS, EACH), key=FACTS.index)
            ]
            articles.append(Article(name, written(name, said, chance)))
            fact, answer = chance.choice(said)
            questions += [
                Question(asked.format(name=name), name, answer, worded)
                for asked, worded in ((fact.asked, True), (fact.otherwise, False))
            ]
    return articles, questions


def written(name: str, said: Sequence[tuple[Fact, str]], chance: random.Random) -> str:
    lines = [f"# {name}", "", paragraph([], chance, 4), ""]
    for section in dict.fromkeys(fact.section for fact, _ in said):
        lines += [f"## {section}", ""]
        for part in split([sentence for fact, sentence in said if fact.section == section], chance):
            lines += [paragraph(part, chance, 5), ""]
    return "\n".join(lines)


def split(sentences: Sequence[str], chance: random.Random) -> Iterator[Sequence[str]]:
    if len(sentences) > 1 and chance.random() < 0.5:
        yield from ([one] for one in sentences)
    else:
        yield sentences


def paragraph(sentences: Sequence[str], chance: random.Random, more: int) -> str:
    whole = [*sentences, *chance.sample(FILLER, more)]
    chance.shuffle(whole)
    return " ".join(whole)
