"""Questions of each category as (user message, answer's beginning, references, meta), in HELMET's formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.evaluate.counting import Counter
from lengthen.evaluate.helmet import data as d
from lengthen.evaluate.helmet import tasks as t

SHOTS = 2


@dataclass(frozen=True)
class Asked:
    """One question. lead: what joins user message and answer's beginning where there is no chat template."""

    user: str
    prefix: str
    refs: tuple[str, ...]
    lead: str = "\n"
    depth: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where a task's rows come from: its file, the file of worked examples, ALCE's prompt file."""

    rows: str | None = None
    demos: str | None = None
    prompt: str | None = None
    shots: int = SHOTS


Question = Callable[[], list[Asked]]
"""One question with its orders, written when it is asked for: at 128K a set of them fills the memory."""


def rag(task: t.HelmetTask, source: Source, length: int) -> list[Question]:
    """Questions, each with its orders of passages (six depths of the gold passage, three for HotpotQA)."""
    rows = d.rows_of(task.name, source.rows, task.count(length))
    demos = d.rows_of(task.name, source.demos or source.rows, 3, "demos") if source.shots else []
    if task.name == "popqa":
        rows, demos = d.popular(rows), d.popular(demos)
    key = "id" if all("id" in row for row in [*rows, *demos]) else "question"
    return [partial(_rag_orders, name, same, demos, source.shots, key) for name, same in _grouped(rows, key)]


def _rag_orders(name: str, same: Sequence[d.Data], demos: Sequence[d.Data], shots: int, key: str) -> list[Asked]:
    shown = d.demonstrations(demos, key, name, shots)
    return [_rag(row, shown, i, len(same)) for i, row in enumerate(same)]


def _grouped(rows: Sequence[d.Data], key: str) -> list[tuple[str, list[d.Data]]]:
    groups: dict[str, list[d.Data]] = {}
    for row in rows:
        groups.setdefault(str(row[key]), []).append(row)
    return [(name, groups[name]) for name in d.chosen_questions(rows, key)]


def _rag(row: d.Data, demos: Sequence[d.Data], number: int, of: int) -> Asked:
    shown = "".join(
        t.RAG_DEMO.format(documents=_passages(t.RAG_PASSAGE, x["ctxs"]), question=x["question"], answer=x["answers"][0])
        for x in demos
    )
    user = t.RAG_USER.format(demos=shown, context=_passages(t.RAG_PASSAGE, row["ctxs"]), question=row["question"])
    depth = float(row["depth"]) if "depth" in row else number / (of - 1) if of > 1 else None
    return Asked(user, "Answer:", tuple(_flat(row["answers"])), depth=depth, meta={"passages": len(row["ctxs"])})


def _passages(template: str, passages: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(template.format(**p) for p in passages)


def _flat(answers: Any) -> list[str]:
    if isinstance(answers, str):
        return [answers]
    return [text for item in answers for text in (_flat(item) if not isinstance(item, str) else [item])]


def rerank(task: t.HelmetTask, source: Source, length: int) -> list[Question]:
    rows = d.rows_of(task.name, source.rows, task.count(length))
    demos = d.rows_of(task.name, source.demos or source.rows, 10, "demos") if source.shots else []
    return [partial(_rerank_orders, name, same, demos, source.shots) for name, same in _grouped(rows, "qid")]


def _rerank_orders(name: str, same: Sequence[d.Data], demos: Sequence[d.Data], shots: int) -> list[Asked]:
    shown = d.demonstrations(demos, "qid", name, shots)
    return [_rerank(row, shown) for row in same]


def _rerank(row: d.Data, demos: Sequence[d.Data]) -> Asked:
    template = t.RERANK_TITLED if "title" in row["ctxs"][0] else t.RERANK_PASSAGE
    shown = "".join(f"{_passages(template, x['ctxs'])}\n\nQuery: {x['query']}\nRanking: {_gold(x)}\n\n" for x in demos)
    user = t.RERANK_USER.format(demos=shown, context=_passages(template, row["ctxs"]), question=row["query"])
    labels = {str(c["id"]): int(c["label"]) for c in row["ctxs"]}
    return Asked(user, "Ranking:", (_gold(row),), meta={"labels": labels})


def _gold(row: d.Data) -> str:
    return " > ".join(str(c["id"]) for c in sorted(row["ctxs"], key=lambda c: -int(c["label"])))


def cite(task: t.HelmetTask, source: Source, length: int) -> list[Question]:
    """Without a prompt file there are no worked examples, and the instruction is ALCE's default one."""
    rows = d.rows_of(task.name, source.rows, None)
    order = d.shuffled(len(rows))
    prompt = _prompt_file(task, source)
    return [partial(_cite, task, rows[i], prompt, source.shots, task.count(length), i) for i in order]


def _prompt_file(task: t.HelmetTask, source: Source) -> Mapping[str, Any]:
    if source.prompt is None:
        return {"instruction": t.CITE_INSTRUCTIONS[task.name], "demos": []}
    path = Path(source.prompt).expanduser()
    if not path.is_file():
        raise LengthenError(f"helmet: there is no prompt file {path}.", fix=f"correct the option `prompts.{task.name}`")
    prompt = json.loads(path.read_text(encoding="utf-8"))
    if "{INST}" in prompt.get("demo_prompt", ""):
        # ALCE's own file: its instruction and examples in HELMET's layout.
        prompt |= {"demo_prompt": t.CITE_DEMO, "doc_prompt": ""}
    return prompt


def _cite(
    task: t.HelmetTask, row: d.Data, prompt: Mapping[str, Any], shots: int, count: int, number: int
) -> list[Asked]:
    rand = d.random.Random(d.text_hash(row["question"]) % 2**31)
    demos = "".join(_cite_demo(x, prompt) for x in rand.sample(prompt["demos"], min(shots, len(prompt["demos"]))))
    context = _documents(row["docs"][:count], prompt)
    user = t.CITE_USER.format(demos=demos, instruction=prompt["instruction"], question=row["question"], context=context)
    if task.name == "alce_asqa":
        groups = [list(pair["short_answers"]) for pair in row["qa_pairs"]]
    else:
        groups = [list(_flat(answers)) for answers in row["answers"]]
    meta = {"row": number, "documents": min(count, len(row["docs"])), "groups": groups}
    return [Asked(user, "Answer:", tuple(_flat(groups)), lead="\n\n", meta=meta)]


def _documents(documents: Sequence[Mapping[str, Any]], prompt: Mapping[str, Any]) -> str:
    template = prompt.get("doc_prompt", "")
    if not template:
        return "\n\n".join(t.CITE_PASSAGE.format(number=i, **x) for i, x in enumerate(documents, 1))
    return "\n\n".join(template.format(**{**x, "ID": i}) for i, x in enumerate(documents, 1))


def _cite_demo(demo: Mapping[str, Any], prompt: Mapping[str, Any]) -> str:
    context = _documents(demo["docs"], prompt)
    text = prompt["demo_prompt"].format(**{**demo, "instruction": prompt["instruction"], "context": context})
    return f"{text}\n\n\n"


def icl(task: t.HelmetTask, source: Source, length: int) -> list[Question]:
    rows = d.rows_of(task.name, source.rows, None)
    shown = d.balanced(d.rows_of(task.name, source.demos, None, "demos"), task.count(length))
    labels = sorted({row["label"] for row in shown}, key=str)
    if all(isinstance(label, int) for label in labels):
        labels = list(range(max(task.labels, max(labels) + 1)))
    order = d.shuffled(len(rows))
    known = set(labels)
    return [partial(_icl, rows[i], shown, labels) for i in order if rows[i]["label"] in known]


def _icl(row: d.Data, shown: Sequence[d.Data], labels: Sequence[Any]) -> list[Asked]:
    numbers = d.label_numbers(row["text"], labels)
    context = "\n\n".join(f"{x['text']}\nlabel: {numbers[x['label']]}" for x in shown)
    user = t.ICL_USER.format(context=context, question=row["text"])
    return [Asked(user, "label:", (numbers[row["label"]],), meta={"shots": len(shown), "classes": len(labels)})]


def longqa(task: t.HelmetTask, source: Source, length: int, counter: Counter) -> list[Question]:
    rows = d.rows_of(task.name, source.rows, None)
    limit = length - task.reserved - task.new_tokens
    demos = d.rows_of(task.name, source.demos, None, "demos") if task.name == "narrativeqa" else []
    found = []
    for i in d.shuffled(len(rows)):
        others = (
            d.demonstrations(demos, "question", rows[i]["question"], source.shots)
            if demos
            else d.fixed_examples(rows, i, source.shots)
        )
        found.append(partial(_longqa, task, rows[i], others, counter, limit))
    return found


def _longqa(task: t.HelmetTask, row: d.Data, others: Sequence[d.Data], counter: Counter, limit: int) -> list[Asked]:
    question, refs = _question(task, row)
    context = cut(row["context"], counter, limit)
    if task.name == "narrativeqa":
        pairs = "\n\n".join(f"Question: {x['question']}\nAnswer: {_flat(x['answer'])[0]}" for x in others)
        shown = t.NARRATIVE_DEMOS.format(demos=pairs) if others else ""
        user = t.NARRATIVE_USER.format(demos=shown, context=context, question=question)
        return [Asked(user, "Answer:", refs, meta={"question": row["question"]})]
    pairs = "\n\n".join(_book_demo(task, x) for x in others)
    shown = t.BOOK_DEMOS.format(demos=pairs) if others else ""
    template = t.BOOK_QA_USER if task.name == "infbench_qa" else t.BOOK_CHOICE_USER
    user = template.format(demos=shown, context=context, question=question)
    return [Asked(user, "Answer:", refs, lead="\n\n", meta={"question": row["question"]})]


def _book_demo(task: t.HelmetTask, row: d.Data) -> str:
    question, refs = _question(task, row)
    return f"[story text]\nQuestion: {question}\nAnswer: {refs[0]}"


def _question(task: t.HelmetTask, row: d.Data) -> tuple[str, tuple[str, ...]]:
    answers = _flat(row["answer"])
    if task.name != "infbench_choice":
        return row["question"], tuple(answers)
    letter = "ABCD"[list(row["options"]).index(answers[0])]
    options = "\n".join(f"{name}. {text}" for name, text in zip("ABCD", row["options"]))
    return f"{row['question']}\nOptions:\n{options}", (letter, f"{letter}. {answers[0]}")


def summ(task: t.HelmetTask, source: Source, length: int, counter: Counter) -> list[Question]:
    rows = d.rows_of(task.name, source.rows, None)
    limit = length - task.reserved - task.new_tokens
    demos = d.rows_of(task.name, source.demos, None, "demos") if task.name == "multi_lexsum" else []
    found = []
    for i in d.shuffled(len(rows)):
        others = (
            d.demonstrations(demos, "context", str(rows[i]["context"]), source.shots)
            if demos
            else d.fixed_examples(rows, i, source.shots)
        )
        found.append(partial(_summ, task, rows[i], others, counter, limit))
    return found


def _summ(task: t.HelmetTask, row: d.Data, others: Sequence[d.Data], counter: Counter, limit: int) -> list[Asked]:
    if task.name == "infbench_sum":
        shown = "\n\n".join(f"[story text]\nSummary: {_flat(x['answer'])[0].strip()}" for x in others)
        demo, template = t.BOOK_DEMOS.format(demos=shown), t.BOOK_SUM_USER
    else:
        shown = "\n\n".join(f"Summary: {_flat(x['answer'])[0]}" for x in others)
        demo, template = t.LAW_DEMOS.format(demos=shown), t.LAW_SUM_USER
    user = template.format(demos=demo if others else "", context=cut(row["context"], counter, limit))
    meta = {"keypoints": list(row.get("keypoints", ()))}
    return [Asked(user, "Summary:", tuple(_flat(row["answer"])), lead="\n\n", meta=meta)]


def cut(text: str, counter: Counter, limit: int) -> str:
    """A text cut to `limit` tokens with HELMET's mark. HELMET counts by Llama 2's tokenizer, we by the tested one."""
    encoding = counter.backend.encode(text, add_special_tokens=False)
    if len(encoding.ids) <= limit:
        return text
    return text[: encoding.offsets[limit - counter.count(t.OMITTED)][1]] + t.OMITTED
