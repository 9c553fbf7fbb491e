"""What HELMET lets a judge model or a language-inference model decide: long answers, summaries, citations.

The scales are HELMET's (fluency 0/1; correctness 0-3; key points found; sentences supported); the wording is ours, so
that judged scores stand beside published ones only with this remark.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lengthen.common.errors import LengthenError
from lengthen.common.words import sentence_spans
from lengthen.evaluate.judge import Rubric, Verdict
from lengthen.evaluate.scorers import Pair, Support, citation_means, cited, parse_answer, support
from lengthen.evaluate.suites import Job, Scored
from lengthen.evaluate.verdicts import judged

LONG_ANSWER = Rubric(
    name="helmet-longqa",
    prompt="""You compare an answer with correct answers. The text that the question is about is not shown.

Fluency: 0 if the answer is gibberish, repeats itself or breaks off; 1 if it is fluent.
Correctness:
0 - it agrees with none of the correct answers;
1 - it agrees with part of one of them;
2 - it agrees fully with one of them, but adds things that have nothing to do with the question;
3 - it agrees fully with one of them and says nothing beside the question. A longer wording is no fault.

<question>
{question}
</question>
<correct_answers>
{correct}
</correct_answers>
<answer>
{answer}
</answer>

Reason briefly, then end with one JSON object: {"fluency": 0 or 1, "correctness": 0 to 3}""",
    scales={"fluency": (0, 1), "correctness": (0, 3)},
)
FLUENCY = Rubric(
    name="helmet-fluency",
    prompt="""Judge the fluency of a text: 0 if it is incoherent, repeats itself (even in other words), breaks off \
early or is gibberish; 1 if it is coherent, free of repetition and grammatical. A cut last sentence alone is no fault.

<text>
{summary}
</text>

End with one JSON object: {"fluency": 0 or 1}""",
    scales={"fluency": (0, 1)},
    max_new_tokens=200,
)
RECALL = Rubric(
    name="helmet-recall",
    prompt="""Count how many of the key points a summary contains. A key point is contained if the summary supports \
its facts, in whatever words.

<key_points>
{keypoints}
</key_points>
<summary>
{summary}
</summary>

Go through the key points one by one, then end with one JSON object: {"recall": number of key points contained}""",
    scales={"recall": (0, 10_000)},
    max_new_tokens=1500,
)
PRECISION = Rubric(
    name="helmet-precision",
    prompt="""Count how many sentences of a summary are supported by a summary that an expert wrote. A sentence is \
supported if the expert's summary states its facts or lets one conclude them.

<expert_summary>
{expert}
</expert_summary>
<summary>
{summary}
</summary>

Go through the sentences one by one, then end with one JSON object: {"precision": number of supported sentences, \
"sentence_count": number of sentences}""",
    scales={"precision": (0, 10_000), "sentence_count": (1, 10_000)},
    max_new_tokens=1500,
)
SUPPORT = Rubric(
    name="helmet-support",
    prompt="""Does the passage support the claim? 1 if everything the claim says follows from the passage, else 0.

<passage>
{passage}
</passage>
<claim>
{claim}
</claim>

End with one JSON object: {"supported": 0 or 1}""",
    scales={"supported": (0, 1)},
    max_new_tokens=200,
)


def long_answers(job: Job, judge: str, scored: Sequence[Scored]) -> tuple[list[float], int]:
    """(fluency x correctness / 3 of each judged answer, unreadable judgements)."""
    slots = {
        s.sample.id: {
            "question": str(s.sample.meta["question"]),
            "correct": "\n".join(s.sample.refs),
            "answer": parse_answer(s.output.replace("\n", " ")),
        }
        for s in scored
    }
    verdicts = judged(job, judge, LONG_ANSWER, slots)
    good = [v.scores["fluency"] * v.scores["correctness"] / 3 for v in verdicts.values() if v.scores is not None]
    return good, len(verdicts) - len(good)


def summaries(job: Job, judge: str, scored: Sequence[Scored]) -> tuple[list[float], int]:
    """(fluency x F1 of key-point recall and sentence precision, unreadable judgements)."""
    text = {s.sample.id: s.output for s in scored}
    points = {s.sample.id: s.sample.meta["keypoints"] for s in scored}
    expert = {s.sample.id: s.sample.refs[0] for s in scored}
    fluent = judged(job, judge, FLUENCY, {i: {"summary": x} for i, x in text.items()})
    recall = judged(job, judge, RECALL, {i: {"summary": x, "keypoints": _list(points[i])} for i, x in text.items()})
    precise = judged(job, judge, PRECISION, {i: {"summary": x, "expert": expert[i]} for i, x in text.items()})
    found = [summary_score(fluent[i], recall[i], precise[i], len(points[i])) for i in text]
    good = [score for score in found if score is not None]
    return good, len(found) - len(good)


def summary_score(fluent: Verdict, recall: Verdict, precise: Verdict, keypoints: int) -> float | None:
    """None if one of the three judgements is unreadable or impossible (more points found than there are)."""
    if fluent.scores is None or recall.scores is None or precise.scores is None or not keypoints:
        return None
    r = recall.scores["recall"] / keypoints
    p = precise.scores["precision"] / precise.scores["sentence_count"]
    if r > 1 or p > 1:
        return None
    return fluent.scores["fluency"] * (2 * r * p / (r + p) if r + p else 0.0)


def _list(points: Sequence[str]) -> str:
    return "\n".join(f"{i}. {point}" for i, point in enumerate(points, 1))


# ---------------------------------------------------------------------------------------------------------- citations
def one_line(output: str) -> str:
    """HELMET scores citations with line breaks as spaces (ALCE itself drops what follows the first one)."""
    return re.sub(r"\n+", " ", output)


def statements(task: str, question: str, output: str) -> list[str]:
    """What ALCE takes for sentences: those of five characters or more; for lists, each item after the question, an
    empty answer being an unsupported one."""
    text = one_line(output)
    if task == "alce_qampari":
        items = text.rstrip().rstrip(".").rstrip(",").split(",")
        return [f"{question} {item.strip()}" for item in items]
    return [s for b, e in sentence_spans(text) if len(s := text[b:e].strip()) >= 5]


@dataclass(frozen=True)
class Citations:
    """Means over the answers that could be scored. left_out: answers with a judgement that failed or was unreadable."""

    recall: float
    precision: float
    answers: int
    left_out: int


class Checks(Protocol):
    """Whether passages support claims, for many pairs at once; None where there is no verdict."""

    def __call__(self, pairs: Sequence[Pair]) -> dict[Pair, bool | None]: ...


def citations(
    task: str, answers: Sequence[tuple[str, str, Sequence[Mapping[str, Any]]]], checks: Checks
) -> Citations | None:
    """Mean recall and precision over (question, output, documents); answers without a sentence are left out, as in
    ALCE, and so are those with a judgement that could not be read, which say nothing about the model."""
    found: list[tuple[int, int, list[Support]]] = []
    for question, output, documents in answers:
        passages = [f"Title: {x['title']}\n{x.get('sent', x['text'])}" for x in documents]
        sentences = statements(task, question, output)
        refs = [cited(sentence, len(passages)) for sentence in sentences]
        if sentences:
            asking = [support(s, r, passages) for s, r in zip(sentences, refs) if r]
            found.append((len(sentences), sum(map(len, refs)), asking))
    verdicts = side_by_side([one for *_, asking in found for one in asking], checks)
    scores = []
    for sentences, count, asking in found:
        results = [verdicts[id(one)] for one in asking]
        if None not in results:
            scores.append(citation_means(sentences, count, [r for r in results if r is not None]))
    if not found:
        return None
    mean = [statistics.fmean(values) for values in zip(*scores)] if scores else [math.nan, math.nan]
    return Citations(mean[0], mean[1], len(scores), len(found) - len(scores))


def side_by_side(asking: Sequence[Support], checks: Checks) -> dict[int, tuple[int, int] | None]:
    """Results of all sentences by their `id`, None where a verdict is missing. Each round asks the next pair of every
    sentence at once: seven rounds at most."""
    results: dict[int, tuple[int, int] | None] = {}
    known: dict[Pair, bool | None] = {}
    waiting = [(one, next(one)) for one in asking]
    while waiting:
        known |= checks([pair for pair in dict.fromkeys(pair for _, pair in waiting) if pair not in known])
        still = []
        for one, pair in waiting:
            verdict = known[pair]
            if verdict is None:
                results[id(one)] = None
                continue
            try:
                still.append((one, one.send(verdict)))
            except StopIteration as done:
                results[id(one)] = done.value
        waiting = still
    return results


@dataclass(frozen=True)
class JudgeChecks:
    """Support as a judge model sees it; each pair is asked once and kept."""

    job: Job
    judge: str

    def __call__(self, pairs: Sequence[Pair]) -> dict[Pair, bool | None]:
        names = {f"support:{hash_of(*pair)}": pair for pair in pairs}
        slots = {name: {"passage": passage, "claim": claim} for name, (passage, claim) in names.items()}
        verdicts = judged(self.job, self.judge, SUPPORT, slots)
        return {
            pair: None if (scores := verdicts[name].scores) is None else scores["supported"] == 1
            for name, pair in names.items()
        }


class ModelChecks:
    """ALCE's own judge of support: a sequence-to-sequence model that answers "1" to "premise: .. hypothesis: .."
    (HELMET uses google/t5_xxl_true_nli_mixture, 11B parameters)."""

    def __init__(self, name: str) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.model = AutoModelForSeq2SeqLM.from_pretrained(name).eval()
        except (OSError, ValueError) as error:
            raise LengthenError(
                f"helmet: the option nli names no sequence-to-sequence model: {name}.",
                why=str(error).splitlines()[0],
                fix="give its folder or Hub name, or name a judge",
            ) from error

    def __call__(self, pairs: Sequence[Pair]) -> dict[Pair, bool | None]:
        return {pair: self._one(*pair) for pair in pairs}

    def _one(self, passage: str, claim: str) -> bool:
        text = f"premise: {passage} hypothesis: {claim}"
        ids = self.tokenizer(text, return_tensors="pt").to(self.model.device)
        out = self.model.generate(**ids, max_new_tokens=10)
        return self.tokenizer.decode(out[0], skip_special_tokens=True).strip() == "1"


def hash_of(passage: str, claim: str) -> str:
    import hashlib

    return hashlib.sha256(f"{passage}\x1f{claim}".encode()).hexdigest()[:16]
