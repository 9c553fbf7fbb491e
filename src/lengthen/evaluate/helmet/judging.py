"""What HELMET lets a judge model or a language-inference model decide: long answers, summaries, citations.

The scales are HELMET's (fluency 0/1; correctness 0-3; key points found; sentences supported); the wording is ours, so
that judged scores stand beside published ones only with this remark.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lengthen.common.words import sentence_spans
from lengthen.evaluate.judge import Rubric, Verdict
from lengthen.evaluate.scorers import Entails, citation_scores, parse_answer
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


def citations(
    task: str, answers: Sequence[tuple[str, str, Sequence[Mapping[str, Any]]]], entails: Entails
) -> tuple[float, float] | None:
    """Mean (recall, precision) over (question, output, documents); answers without a sentence are left out, as in
    ALCE."""
    found = []
    for question, output, documents in answers:
        passages = [f"Title: {x['title']}\n{x.get('sent', x['text'])}" for x in documents]
        scores = citation_scores(statements(task, question, output), passages, entails)
        if scores is not None:
            found.append(scores)
    if not found:
        return None
    return statistics.fmean(r for r, _ in found), statistics.fmean(p for _, p in found)


class JudgeEntails:
    """Support as a judge model sees it; each pair is asked once. `unreadable` counts answers that were no verdict."""

    def __init__(self, job: Job, judge: str) -> None:
        self.job, self.judge, self.unreadable = job, judge, 0

    def __call__(self, passage: str, claim: str) -> bool:
        name = f"support:{hash_of(passage, claim)}"
        verdict = judged(self.job, self.judge, SUPPORT, {name: {"passage": passage, "claim": claim}})[name]
        self.unreadable += verdict.scores is None
        return verdict.scores is not None and verdict.scores["supported"] == 1


class ModelEntails:
    """ALCE's own judge of support: a sequence-to-sequence model that answers "1" to "premise: .. hypothesis: .."
    (HELMET uses google/t5_xxl_true_nli_mixture, 11B parameters)."""

    unreadable = 0

    def __init__(self, name: str) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(name).eval()

    def __call__(self, passage: str, claim: str) -> bool:
        text = f"premise: {passage} hypothesis: {claim}"
        ids = self.tokenizer(text, return_tensors="pt").to(self.model.device)
        out = self.model.generate(**ids, max_new_tokens=10)
        return self.tokenizer.decode(out[0], skip_special_tokens=True).strip() == "1"


def hash_of(passage: str, claim: str) -> str:
    import hashlib

    return hashlib.sha256(f"{passage}\x1f{claim}".encode()).hexdigest()[:16]
