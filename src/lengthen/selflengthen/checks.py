"""What an answer must satisfy before it counts. Each rule has a name, so that rejections can be counted and shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from lengthen.common.words import ends_sentence, is_cjk, repetition, sentence_spans
from lengthen.generate.engine import NO_ROOM, Answer
from lengthen.recipe.stages.self_lengthen import Checks
from lengthen.selflengthen.wording import Wording

RULES = {
    "endpoint_error": "the request failed after all its tries",
    "thinking": "the answer shows its thinking (<think>); see template_options",
    "empty": "no word in the answer",
    "cut_by_limit": "stopped by the token limit, not by the model",
    "too_short": "fewer words than checks.min_words",
    "refusal": "the model declines",
    "meta": "opens or closes by talking about the answer",
    "language": "another script than the instruction's",
    "loop": "a stretch longer than checks.longest_copy copies an earlier one",
    "repetition": "a larger share of repeated n-grams than checks.repeated_share",
    "no_sentence_end": "breaks off within a sentence",
    "not_longer": "an extension that is not longer than its outline",
    "no_growth": "after all rounds not longer than extend.growth times the response",
    "no_edge": "no sentence edge to cut the text at",
    "no_room": "prompt and answer do not fit the model's window, or the server's",
    "judged_no": "the judge says no",
    "judge_unclear": "the judge says neither yes nor no",
    "out_of_size": "an instruction outside of instruct.above_words and below_words",
    "near_duplicate": "near to an instruction that is there already",
    "evaluation_prompt": "near to an evaluation prompt",
    "not_selected": "left out by length-biased selection",
    "same_instruction": "a longer extension of the same instruction was selected too (extend.per_instruction)",
    "other_language": "an instruction in a language that is not in `languages`",
    "too_long_to_train": "more tokens than training.row_length",
    "no_band": "no length demand whose band holds the text (constraints.without_band)",
    "has_length": "the instruction names another length than the demand",
    "demand_missing": "the woven instruction lacks the demand's numbers",
    "demand_kind": "the woven instruction turns the demand, such as at most into more than",
    "demand_changed": "the woven instruction lost much of the original",
    "beyond_count": "a document after the first instruct.count",
    "bad_plan": "a plan without readable lines, or with more than 50",
}
"""Every rule by which the loop rejects something, for the report."""


@dataclass(frozen=True)
class Verdict:
    """rule: name of the first rule broken, or "" for none. words, clean_words: by our counter; clean = up to the first
    repeated span."""

    rule: str
    detail: str = ""
    words: int = 0
    clean_words: int = 0

    @property
    def accepted(self) -> bool:
        return self.rule == ""


_THINKING = re.compile(
    r"</?\s*(?:think|thinking|thought|reasoning)\s*>|◁/?think▷|\[/?THINK\]|<\|(?:begin|end)_of_thought\|>",
    re.IGNORECASE,
)


def failure(answer: Answer) -> Verdict | None:
    """Why an answer is none: its request failed, the server had no room for it, or it is a model's talk with itself. A
    template may open the thinking itself, so that the answer only closes it."""
    if answer.finish_reason == "error":
        error = answer.error or ""
        return Verdict("no_room" if error.startswith(NO_ROOM) else "endpoint_error", error[:300])
    found = _THINKING.search(answer.text)
    return Verdict("thinking", answer.text[found.start() :][:120]) if found else None


def check(answer: Answer, text: str, settings: Checks, wording: Wording) -> Verdict:
    """The verdict on a text: the answer, or a kept beginning and the answer that continues it.

    The rules go from plain failures to repetition, so that the first one broken names the cause: a text that circles
    until the token limit counts as cut.
    """
    if (failed := failure(answer)) is not None:
        return failed
    cjk = wording.language == "zh"
    found = repetition(text, settings.ngram_signs if cjk else settings.ngram_words)

    def reject(rule: str, detail: str) -> Verdict:
        return Verdict(rule, detail, found.words, found.clean_words)

    if found.words == 0:
        return reject("empty", "")
    if answer.finish_reason == "length":
        circling = found.longest_copy > settings.longest_copy or found.share > settings.repeated_share
        return reject("cut_by_limit", "circling" if circling else "still writing")
    if settings.refusals and (said := refusal(text, found.words, wording)):
        return reject("refusal", said)
    if found.words < settings.min_words:
        return reject("too_short", f"{found.words} words")
    if settings.meta and (said := meta_line(text, wording)):
        return reject("meta", said)
    if settings.language and is_cjk(text) != cjk:
        return reject("language", text[:80])
    if found.longest_copy > settings.longest_copy:
        return reject("loop", f"{found.longest_copy} words copied")
    if found.share > settings.repeated_share:
        return reject("repetition", f"share {found.share:.3f}")
    if settings.sentence_end and not ends_sentence(text):
        return reject("no_sentence_end", text.rstrip()[-60:])
    return reject("", "")


def meta_line(text: str, wording: Wording) -> str:
    """The line that talks about the answer, or "": a whole opening among the first two lines, or the beginning of one
    of the last three lines or of the last sentence. Words inside a sentence never count ("the English version")."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    opening, closing = _patterns(wording, "opening"), _patterns(wording, "closing")
    for line in lines[:2]:
        if opening.match(_bare(line)):
            return line[:200]
    last = [text[a:b].strip() for a, b in sentence_spans(text) if text[a:b].strip()][-1:]
    for line in (lines[-3:] if len(lines) > 3 else lines[1:]) + last:
        if closing.match(_bare(line)):
            return line[:200]
    return ""


def refusal(text: str, words: int, wording: Wording) -> str:
    """The sentence that declines, or "". Refusals are short; a long text whose hero says sorry is none."""
    if words > 200:
        return ""
    for line in [line for line in text.splitlines() if line.strip()][:2]:
        if _patterns(wording, "refusal").match(_bare(line)):
            return line.strip()[:200]
    return ""


def _bare(line: str) -> str:
    """Without Markdown's marks, with plain apostrophes. Quotation marks stay: speech is part of a story."""
    return re.sub(r"^[\s#>*_\-]+", "", line).replace("’", "'").rstrip("*_ ")


def _patterns(wording: Wording, kind: str) -> re.Pattern[str]:
    return _compiled(tuple(wording.phrases[kind]))


@lru_cache(maxsize=32)
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{p})" for p in patterns), re.IGNORECASE)
