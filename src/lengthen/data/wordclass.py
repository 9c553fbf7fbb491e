"""Word classes without a tagger: digits, punctuation and closed classes by list; everything else is a content word.

LongRecipe (arXiv 2409.00509, section 3.1) tallies parts of speech with a trained tagger. The classes that its choice of
sentences rests on (numerals, pronouns and auxiliaries, conjunctions and adpositions) are closed: their words can be
listed, so no model has to be downloaded. Limits: a word has one class here whatever its use ("that", "to", "like",
"her"); nouns, verbs, adjectives and adverbs are one class, `content`, except for names (`name`: a capital inside a
sentence). English and Chinese only; words of other languages count as content. In Chinese, signs and words of the
lists are found in running text, longest first, without segmentation.
"""

from __future__ import annotations

import re
from functools import cache

CLASSES = (
    "number", "pronoun", "auxiliary", "conjunction", "adposition", "determiner", "particle", "name", "content",
    "punctuation",
)  # fmt: skip

_LISTS: dict[str, str] = {
    "number": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million "
    "billion "
    "trillion dozen first second third fourth fifth sixth seventh eighth ninth tenth half twice thrice",
    "pronoun": "i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its "
    "itself we us our ours ourselves they them their theirs themselves who whom whose which what whoever whatever "
    "someone somebody something anyone anybody anything everyone everybody everything none nobody nothing thou thee "
    "thy "
    "thine ye",
    "auxiliary": "be am is are was were been being have has had having do does did will would shall should can "
    "could may "
    "might must ought cannot don't doesn't didn't isn't aren't wasn't weren't won't wouldn't can't couldn't shouldn't "
    "hasn't haven't hadn't hath doth",
    "conjunction": "and or but nor yet so if because although though while whereas unless until since whether when "
    "whenever where wherever as than that lest",
    "adposition": "of in to for with on at by from up about into over after under between through during before "
    "without "
    "within against among amongst across behind beyond near off onto out toward towards upon via per above below "
    "beneath "
    "beside besides despite except inside outside around along down",
    "determiner": "the a an this these those each every either neither some any no all both few many much several such "
    "another other",
    "particle": "not n't there 's",
}
_CHINESE: dict[str, str] = {
    "pronoun": "我们 你们 他们 她们 它们 自己 这些 那些 这个 那个 谁 什么 我 你 您 他 她 它 这 那",
    "auxiliary": "应该 必须 可以 可能 能够 会 能 可 应 须 将 是 要 了 着 过",
    "conjunction": "因为 所以 但是 而且 或者 如果 虽然 以及 并且 因此 和 与 或 但 而 且 若",
    "adposition": "关于 对于 根据 按照 在 于 从 对 向 把 被 为 由 以 自",
    "particle": "的 地 得 不 没 未 吗 呢 吧",
    "determiner": "每 各 某 该 此",
}
_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_HAN}]+|\d+(?:[.,:/-]\d+)*%?|[^\W\d_]+(?:['’][^\W\d_]+)?|_+|[^\w\s]", re.UNICODE)
_HAN_NUMBER = re.compile(r"第?[〇零一二两三四五六七八九十百千万亿]+")
_ENDS = frozenset('.!?。！？:：\n"“”')


@cache
def _closed() -> dict[str, str]:
    return {word: name for name, words in _LISTS.items() for word in words.split()}


@cache
def _chinese() -> re.Pattern[str]:
    words = sorted(((w, n) for n, ws in _CHINESE.items() for w in ws.split()), key=lambda pair: -len(pair[0]))
    return re.compile("|".join(f"(?P<{name}_{i}>{re.escape(word)})" for i, (word, name) in enumerate(words)))


def word_classes(text: str) -> list[tuple[int, int, str]]:
    """(begin, end, class) of every word and sign of a text, in order; white space has none."""
    found: list[tuple[int, int, str]] = []
    begins_sentence = True
    for match in _WORD.finditer(text):
        word, begin = match.group(), match.start()
        if "\u3400" <= word[0] <= "\u9fff":
            found += _han(word, begin)
        else:
            found.append((begin, match.end(), _class_of(word, begins_sentence)))
        begins_sentence = word[-1] in _ENDS or (begins_sentence and not word[-1].isalnum())
    return found


def _class_of(word: str, begins_sentence: bool) -> str:
    if word[0].isdigit():
        return "number"
    if not (word[0].isalpha()):
        return "punctuation"
    known = _closed().get(word.lower().replace("’", "'"))
    if known is not None:
        return known
    return "name" if word[0].isupper() and not begins_sentence else "content"


def _han(run: str, offset: int) -> list[tuple[int, int, str]]:
    found: list[tuple[int, int, str]] = []
    at = 0
    while at < len(run):
        number = _HAN_NUMBER.match(run, at)
        listed = None if number else _chinese().match(run, at)
        match = number or listed
        if match is None:
            found.append((offset + at, offset + at + 1, "content"))
            at += 1
            continue
        name = "number" if number else str(match.lastgroup).rsplit("_", 1)[0]
        found.append((offset + match.start(), offset + match.end(), name))
        at = match.end()
    return found
