"""Real text in passages, and made-up facts that are planted into it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lengthen.common.words import sentence_spans
from lengthen.evaluate.draws import Draws

PASSAGE_WORDS = 60


@dataclass(frozen=True)
class Fact:
    """A made-up statement. subject: whom it is about. text: the sentence. question, answer: what is asked of it."""

    kind: str
    subject: str
    text: str
    question: str
    answer: str


def passages_of(text: str, words: int = PASSAGE_WORDS) -> list[str]:
    """A text in passages of about `words` words that end with a sentence; leftovers shorter than half are dropped."""
    flat = re.sub(r"\s+", " ", text).strip()
    found, current, count = [], [], 0
    for begin, end in sentence_spans(flat):
        sentence = flat[begin:end].strip()
        size = sentence.count(" ") + 1
        if size > 2 * words:  # tables, lists of names: no sentences
            continue
        current.append(sentence)
        count += size
        if count >= words:
            found.append(" ".join(current))
            current, count = [], 0
    if count >= words // 2:
        found.append(" ".join(current))
    return found


# Kinds of the evaluation alone: what is trained on (`lengthen.synthesize`) uses other kinds and other wordings.
_GIVEN = [
    "Orsolya",
    "Bertrand",
    "Ilse",
    "Caspian",
    "Thandeka",
    "Ruprecht",
    "Mirela",
    "Anselm",
    "Yevgenia",
    "Tobiah",
    "Signe",
    "Lucan",
    "Parveen",
    "Hjalmar",
    "Odalys",
    "Fenwick",
    "Zuleika",
    "Amadeus",
    "Brynja",
    "Cosmo",
]
_FAMILY = [
    "Quillfeather",
    "Marchbanks",
    "Oduya",
    "Petrescu",
    "Vanterpool",
    "Lindqvist",
    "Abernethy",
    "Szabados",
    "Teague",
    "Nakagawa",
    "Brightwater",
    "Castellane",
    "Drummond",
    "Eskildsen",
    "Farthingale",
    "Gorecki",
    "Holloway",
    "Iwasaki",
    "Jurgens",
    "Kestrel",
]
_SHIPS = [
    "Meridian Swan",
    "Copper Heron",
    "Grey Postman",
    "Saltmarsh Queen",
    "Northern Lantern",
    "Bold Cartographer",
    "Winter Thrush",
    "Amber Pilot",
    "Quiet Margaret",
    "Second Promise",
    "Iron Larkspur",
    "Tidal Bishop",
]
_PLACES = [
    "Ostermouth",
    "Vellacombe",
    "Harrowick",
    "Pellinore",
    "Dunmarrow",
    "Stavering",
    "Culverhythe",
    "Ambleforde",
    "Wexcombe",
    "Thornaby Cross",
    "Lower Quarrington",
    "Saint Aldric",
    "Ravensgill",
    "Brackenholt",
]
_CARGO = [
    "dried apricots",
    "window glass",
    "tin ore",
    "printing type",
    "cork bark",
    "beeswax",
    "sheet copper",
    "linseed oil",
    "church bells",
    "porcelain tiles",
    "walnut planks",
    "sea salt",
]
_SEATS = ["cello", "bassoon", "viola", "French horn", "oboe", "timpani", "harp", "piccolo", "clarinet", "tuba"]
_DISHES = [
    "barley broth",
    "quince tart",
    "smoked eel",
    "plum dumplings",
    "chestnut bread",
    "leek pie",
    "saffron buns",
    "pickled walnuts",
    "duck rillettes",
    "elderflower jelly",
]


def make_fact(kind: str, draws: Draws, subject: str | None = None) -> Fact:
    """A fact of a kind, about a given subject or a new one."""
    person = subject or f"{draws.pick(_GIVEN)} {draws.pick(_FAMILY)}"
    if kind == "locker":
        number = str(draws.integer(1000, 10000))
        return Fact(kind, person, f"{person} kept a coat in locker {number} of the old swimming hall.",
                    f"In which locker of the old swimming hall did {person} keep a coat?", number)  # fmt: skip
    if kind == "seat":
        seat = draws.pick(_SEATS)
        return Fact(kind, person, f"In the town orchestra {person} played the {seat}.",
                    f"Which instrument did {person} play in the town orchestra?", seat)  # fmt: skip
    if kind == "dish":
        dish = draws.pick(_DISHES)
        return Fact(kind, person, f"For the harvest supper {person} always brought {dish}.",
                    f"What did {person} always bring for the harvest supper?", dish)  # fmt: skip
    ship = subject or f"the {draws.pick(_SHIPS)}"
    if kind == "cargo":
        cargo = draws.pick(_CARGO)
        return Fact(kind, ship, f"On its last voyage {ship} was loaded with {cargo}.",
                    f"What was {ship} loaded with on its last voyage?", cargo)  # fmt: skip
    if kind == "harbour":
        place = draws.pick(_PLACES)
        return Fact(kind, ship, f"The harbour register says that {ship} was built at {place}.",
                    f"Where was {ship} built, according to the harbour register?", place)  # fmt: skip
    tons = str(draws.integer(200, 9800))
    return Fact("tonnage", ship, f"A surveyor wrote down {tons} tons for {ship}.",
                f"How many tons did a surveyor write down for {ship}?", tons)  # fmt: skip


PERSON_KINDS = ("locker", "seat", "dish")
SHIP_KINDS = ("cargo", "harbour", "tonnage")
KINDS = (*PERSON_KINDS, *SHIP_KINDS)


@dataclass(frozen=True)
class Quartet:
    """A question's material: the fact that answers it, another fact about the same subject, and two of the same kind
    about others. Relevance for re-ranking: 2, 1, 0, 0."""

    gold: Fact
    same_subject: Fact
    same_kind: tuple[Fact, Fact]

    @property
    def facts(self) -> tuple[Fact, ...]:
        return (self.gold, self.same_subject, *self.same_kind)


def quartets(draws: Draws, count: int) -> list[Quartet]:
    """Material for `count` questions: no subject twice, no answer of a gold fact in another fact."""
    used: set[str] = set()
    golds: set[str] = set()
    others: set[str] = set()
    found: list[Quartet] = []
    while len(found) < count:
        kind = KINDS[len(found) % len(KINDS)]
        kinds = PERSON_KINDS if kind in PERSON_KINDS else SHIP_KINDS
        gold = make_fact(kind, draws)
        same = make_fact(draws.pick([k for k in kinds if k != kind]), draws, gold.subject)
        rest = (make_fact(kind, draws), make_fact(kind, draws))
        subjects = {gold.subject, rest[0].subject, rest[1].subject}
        answers = {f.answer for f in (same, *rest)}
        fresh = len(subjects) == 3 and not subjects & used and gold.answer not in answers | others | golds
        if fresh and not answers & (golds | {gold.answer}):
            used |= subjects
            golds.add(gold.answer)
            others |= answers
            found.append(Quartet(gold, same, rest))
    return found


def plant(passage: str, fact: Fact, draws: Draws) -> str:
    """The fact's sentence between two sentences of the passage (or at one of its ends)."""
    sentences = [passage[b:e].strip() for b, e in sentence_spans(passage)]
    place = draws.integer(0, len(sentences) + 1)
    return " ".join([*sentences[:place], fact.text, *sentences[place:]])
