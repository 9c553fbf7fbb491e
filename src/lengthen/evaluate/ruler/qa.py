"""RULER's two question tasks: SQuAD v2 and HotpotQA questions among other paragraphs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lengthen.common.errors import LengthenError
from lengthen.evaluate.counting import Counter, Frame
from lengthen.evaluate.draws import Draws
from lengthen.evaluate.fit import Draft
from lengthen.evaluate.ruler import templates as t

HUB = {
    "squad": ("rajpurkar/squad_v2", None, "validation"),
    "hotpotqa": ("hotpotqa/hotpot_qa", "distractor", "validation"),
}


@dataclass(frozen=True)
class Question:
    """own: numbers of the paragraphs that answer it. near: those of the same article, the first distractors."""

    question: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    near: tuple[int, ...] = ()


@dataclass(frozen=True)
class QuestionSet:
    documents: tuple[str, ...]
    questions: tuple[Question, ...]


def load_questions(data: str, source: str | None = None) -> QuestionSet:
    """SQuAD v2 (`squad`) or HotpotQA (`hotpotqa`), validation rows.

    Args:
        source: None for the Hub, or a file: the original JSON of either set, or JSON lines / parquet with the Hub's
            columns (squad: `title, context, question, answers{text}`; hotpotqa: `question, answer, context{title,
            sentences}`). Unanswerable questions are left out, as RULER does.
    """
    rows = _read(data, source)
    found = _squad(rows) if data == "squad" else _hotpotqa(rows)
    if not found.questions:
        raise LengthenError(
            f"{source or HUB[data][0]} has no answerable question.",
            fix="give a file of the validation split with its answers",
        )
    return found


def _read(data: str, source: str | None) -> list[Mapping[str, Any]]:
    if source is None:
        from datasets import load_dataset

        name, config, split = HUB[data]
        try:
            return list(load_dataset(name, config, split=split))  # type: ignore[arg-type]
        except Exception as error:  # the Hub client raises many kinds: offline, not found, gated, time-outs
            raise LengthenError(
                f"The question set {name} could not be loaded: {str(error).splitlines()[0]}",
                why=f"RULER's {'qa_1' if data == 'squad' else 'qa_2'} takes its questions from it",
                fix="connect once, name a file of the same schema in the suite's `data`, or leave the task out",
            ) from error
    path = Path(source).expanduser()
    if not path.is_file():
        raise LengthenError(f"There is no file {path}.", fix=f"give the {data} validation file, or leave the task out")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path).to_pylist()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    whole = json.loads(text)
    return whole["data"] if isinstance(whole, dict) else whole


def _squad(rows: Iterable[Mapping[str, Any]]) -> QuestionSet:
    flat = [row for item in rows for row in (_squad_rows(item) if "paragraphs" in item else [item])]
    documents = sorted({row["context"] for row in flat})
    number = {text: i for i, text in enumerate(documents)}
    articles: dict[str, dict[int, None]] = {}
    for row in flat:
        articles.setdefault(row.get("title", ""), {})[number[row["context"]]] = None
    questions = []
    for row in flat:
        answers = tuple(row["answers"]["text"])
        if answers:
            own = number[row["context"]]
            near = tuple(i for i in articles[row.get("title", "")] if i != own)
            questions.append(Question(row["question"], answers, (own,), near))
    return QuestionSet(tuple(documents), tuple(questions))


def _squad_rows(article: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows as on the Hub from one article of the original JSON."""
    return [
        {
            "title": article.get("title", ""),
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {"text": [] if qa.get("is_impossible") else [a["text"] for a in qa["answers"]]},
        }
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def _hotpotqa(rows: Iterable[Mapping[str, Any]]) -> QuestionSet:
    found = []
    for row in rows:
        context = row["context"]
        pairs = zip(context["title"], context["sentences"]) if isinstance(context, dict) else context
        found.append((row, [f"{title}\n{''.join(sentences)}" for title, sentences in pairs]))
    documents = sorted({d for _, texts in found for d in texts})
    number = {text: i for i, text in enumerate(documents)}
    questions = [
        Question(row["question"], (row["answer"],), tuple(dict.fromkeys(number[d] for d in texts)))
        for row, texts in found
    ]
    return QuestionSet(tuple(documents), tuple(questions))


@dataclass
class QaMaker:
    """One question per sample; the question's own paragraphs, its article's others, then random ones, shuffled."""

    task: t.RulerTask
    counter: Counter
    frame: Frame
    length: int
    seed: int
    questions: QuestionSet
    short_of: str = "The paragraphs"
    proven: bool = field(init=False)

    def __post_init__(self) -> None:
        c, documents = self.counter, self.questions.documents
        self.document_counts = c.counts([f"{d}\n\n" for d in documents])
        self.label_counts = np.cumsum([0, *c.counts([f"Document {i}:\n" for i in range(1, len(documents) + 1)])])
        self.order = Draws(self.seed, "ruler", self.task.name, "questions").order(len(self.questions.questions))
        starts = {d[:1] for d in documents}
        self.proven = all(c.border("Document 7:\n", s + "a") for s in starts) and all(
            c.border(f"a{e}\n\n", "Document 8") for e in {d[-1:] for d in documents}
        )

    def plan(self, index: int) -> _Plan:
        return _Plan(self, index)


class _Plan:
    def __init__(self, maker: QaMaker, index: int) -> None:
        self.m, self.index = maker, index
        if index >= len(maker.order):
            raise LengthenError(
                f"{maker.task.name}: sample {index} was asked for, the set has {len(maker.order)} questions.",
                fix="ask for fewer samples",
            )
        self.q = maker.questions.questions[int(maker.order[index])]
        draws = Draws(maker.seed, "ruler", maker.task.name, maker.length, index)
        near = draws.shuffled(self.q.near)
        taken = {*self.q.own, *near}
        rest = [i for i in draws.order(len(maker.questions.documents)).tolist() if i not in taken]
        self.picks = [*self.q.own, *near, *rest]
        self.least, self.most = len(self.q.own), len(self.picks)
        self.sums = np.cumsum(maker.document_counts[self.picks])
        tail = f"{t.QA_TAIL.format(query=self.q.question)}{maker.frame.after}{t.QA_PREFIX}"
        self.base = maker.frame.added + int(maker.counter.counts([maker.frame.before + t.QA_HEAD, tail]).sum())

    def tokens(self, units: int) -> int:
        return self.base + int(self.sums[units - 1]) + int(self.m.label_counts[units])

    def build(self, units: int) -> list[Draft]:
        m, q = self.m, self.q
        draws = Draws(m.seed, "ruler", m.task.name, m.length, self.index, "order")
        picks = draws.shuffled(self.picks[:units])
        texts = (m.questions.documents[i] for i in picks)
        context = "".join(f"{t.QA_DOCUMENT.format(number=i, document=d)}\n\n" for i, d in enumerate(texts, 1))
        user = f"{t.QA_HEAD}{context}{t.QA_TAIL.format(query=q.question)}"
        places = [round(picks.index(i) / units, 4) for i in q.own]
        depth = places[0] if len(places) == 1 else None
        meta = {"units": units, "depths": places}
        return [Draft(user, t.QA_PREFIX, q.answers, m.task.new_tokens, str(self.index), depth, meta)]
