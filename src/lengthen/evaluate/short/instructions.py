"""Instructions whose format a program can check: does the model still do as it is told?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

NEW_TOKENS = 160
Check = Callable[[str], bool]


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str
    check: Check


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines() if line.strip()]


def _bullets(count: int) -> Check:
    return lambda text: len([line for line in _lines(text) if re.match(r"[-*•] +\S", line)]) == count


def _numbered(count: int) -> Check:
    def check(text: str) -> bool:
        found = [int(m[1]) for line in _lines(text) if (m := re.match(r"(\d+)[.)] +\S", line))]
        return found == list(range(1, count + 1))

    return check


def _words(low: int, high: int) -> Check:
    return lambda text: low <= len(text.split()) <= high


def _json_keys(*keys: str) -> Check:
    def check(text: str) -> bool:
        body = re.sub(r"^```(?:json)?|```$", "", text.strip()).strip()
        try:
            found = json.loads(body)
        except json.JSONDecodeError:
            return False
        return isinstance(found, dict) and set(found) == set(keys)

    return check


def _lower(text: str) -> bool:
    return bool(re.search(r"[a-z]", text)) and text == text.lower()


def _upper(text: str) -> bool:
    return bool(re.search(r"[A-Z]", text)) and text == text.upper()


def _begins(words: str) -> Check:
    return lambda text: text.strip().lower().startswith(words.lower())


def _ends(words: str) -> Check:
    return lambda text: text.strip().rstrip(".!\"'").lower().endswith(words.lower())


def _holds(*words: str) -> Check:
    return lambda text: all(re.search(rf"\b{re.escape(w)}\b", text, re.IGNORECASE) for w in words)


def _lacks(pattern: str, least_words: int) -> Check:
    return lambda text: not re.search(pattern, text, re.IGNORECASE) and len(text.split()) >= least_words


def _paragraphs(count: int) -> Check:
    return lambda text: len([p for p in re.split(r"\n\s*\n", text.strip()) if p.strip()]) == count


def _choice(*options: str) -> Check:
    return lambda text: text.strip().rstrip(".").lower() in options


def _quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”'


def _table(columns: int, rows: int) -> Check:
    def check(text: str) -> bool:
        lines = [line for line in _lines(text) if line.startswith("|") and line.endswith("|")]
        body = [line for line in lines if not re.fullmatch(r"[|\s:-]+", line)]
        return len(body) == rows + 1 and all(line.count("|") == columns + 1 for line in body)

    return check


def _sentences(count: int) -> Check:
    def check(text: str) -> bool:
        from lengthen.common.words import sentence_spans

        return len([1 for b, e in sentence_spans(text) if re.search(r"\w", text[b:e])]) == count

    return check


INSTRUCTIONS: tuple[Instruction, ...] = tuple(
    Instruction(name, text, check)
    for name, text, check in (
        ("bullets-3", "Name three uses of vinegar in the house. Write exactly three lines, each beginning with '- '.",
         _bullets(3)),
        ("bullets-5", "List five birds. Write exactly five lines, each beginning with '- '.", _bullets(5)),
        ("bullets-4", "Give four tips for packing a bag, as exactly four lines that begin with '- '.", _bullets(4)),
        ("numbered-4", "How do I make a cup of tea? Answer with exactly four numbered steps, 1. to 4.", _numbered(4)),
        ("numbered-3", "Name three planets in a numbered list from 1. to 3.", _numbered(3)),
        ("numbered-6", "Write six things that one can see in a harbour, numbered from 1. to 6.", _numbered(6)),
        ("json-2", "Describe a cat as a JSON object with the keys \"name\" and \"colour\". Write only the JSON.",
         _json_keys("name", "colour")),
        ("json-3", "Make up a book. Answer only with a JSON object that has exactly the keys \"title\", \"author\" and "
         "\"year\".", _json_keys("title", "author", "year")),
        ("json-1", "Answer only with a JSON object that has the single key \"capital\", for the country France.",
         _json_keys("capital")),
        ("lower-1", "Write one sentence about rain, all in lower case letters.", _lower),
        ("lower-2", "What is a library? Answer in one sentence without any capital letter.", _lower),
        ("upper-1", "Write a short warning about ice on the road. USE ONLY CAPITAL LETTERS.", _upper),
        ("upper-2", "Greet a friend in capital letters only.", _upper),
        ("begins-1", "Tell me about bees in two sentences. Begin your answer with the words 'In the garden'.",
         _begins("In the garden")),
        ("begins-2", "Why do we sleep? Begin with the word 'Because'.", _begins("Because")),
        ("ends-1", "Write two sentences about the sea and end with the words 'and the tide came in'.",
         _ends("and the tide came in")),
        ("ends-2", "Describe a winter morning briefly. The last word must be 'snow'.", _ends("snow")),
        ("holds-1", "Write one sentence that contains the words 'lantern', 'river' and 'seven'.",
         _holds("lantern", "river", "seven")),
        ("holds-2", "Write a sentence about cooking in which the words 'onion' and 'patience' occur.",
         _holds("onion", "patience")),
        ("lacks-comma", "Describe a forest in at least fifteen words and use no comma at all.", _lacks(",", 15)),
        ("lacks-the", "Describe a bicycle in at least twelve words without the word 'the'.", _lacks(r"\bthe\b", 12)),
        ("words-short", "What is gravity? Answer in at most ten words.", _words(2, 10)),
        ("words-1", "What colour is a ripe banana? Answer with a single word.", _words(1, 1)),
        ("words-2", "What is the opposite of 'hot'? Answer with a single word.", _words(1, 1)),
        ("choice-1", "Is the moon larger than the earth? Answer only yes or no.", _choice("yes", "no")),
        ("choice-2", "Is water wet? Reply with exactly one of these words: true, false.", _choice("true", "false")),
        ("quoted", "Write a motto for a bakery. Put your whole answer in double quotation marks.", _quoted),
        ("paragraphs-2", "Write about autumn in exactly two short paragraphs with an empty line between them.",
         _paragraphs(2)),
        ("sentences-2", "What is a volcano? Answer in exactly two sentences.", _sentences(2)),
        ("table", "Make a Markdown table with the two columns Fruit and Colour and exactly three rows of fruit. Write "
         "only the table.", _table(2, 3)),
    )
)  # fmt: skip
