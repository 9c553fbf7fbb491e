"""The `instructions` stage: a model asks about documents and answers itself (arXiv 2401.18058, section 3.1).

For each conversation a document and one of four kinds of prompt are drawn; the writer lists questions; one is drawn;
the writer answers it with the document before its eyes. Prompts are in the document's language, their wording is ours.
With `about: topics` everyday questions made by program take the place of the first call: short chats where none are at
hand.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.common.files import append_json_line, read_json_lines, write_atomic
from lengthen.common.manifest import Drops, StageContext, StageResult
from lengthen.common.seeds import derive_seed, named_random
from lengthen.common.words import count_words, repetition
from lengthen.generate import Answer, Engine, Request, open_engine
from lengthen.generate.wire import EndpointOptions
from lengthen.recipe.stages.instructions import InstructionsStage
from lengthen.synthesize.documents import open_library
from lengthen.synthesize.instruction_wording import ANSWER, ask_for_questions, topics
from lengthen.synthesize.kept import fetch, keep, kept_file
from lengthen.synthesize.lengths import log_uniform
from lengthen.synthesize.library import Library
from lengthen.synthesize.query import Redraw
from lengthen.synthesize.tokens import Counter

WORK = ".answers.jsonl"
_LINE = re.compile(r"^\s*(?:\*\*)?(?:Q(?:uestion)?\s*)?(\d+)\s*[.)、:：．]\s*(?:\*\*)?\s*(.+?)\s*(?:\*\*)?\s*$")
_MOST_REPEATED = 0.2


@dataclass(frozen=True)
class Item:
    """What one conversation is about.

    text: the document ("" for topics). question: given for topics only. refused: the rule by which nothing is asked.
    redrawn: documents that were drawn and put back, by rule.
    """

    number: int
    language: str
    kind: str
    text: str = ""
    documents: tuple[str, ...] = ()
    tokens: int = 0
    question: str = ""
    refused: str = ""
    redrawn: Mapping[str, int] = field(default_factory=dict)


def write_instructions(settings: InstructionsStage, ctx: StageContext) -> StageResult:
    """Write `chat.jsonl` with `count` conversations, fewer when `tries` times as many were asked for and refused.

    Every answer of the writer is kept as it comes, so a killed stage asks nothing twice. Refused ones are counted by
    rule. Answers of the default model to `topics` stay in the cache for the next recipe that asks for the same.

    Raises:
        LengthenError: documents that are not there or hold too little, before anything is asked; a writer that answers
            nothing at all.
    """
    counter = Counter.of_model(settings.model)
    maker = Maker(settings, ctx.seed, counter)
    kept = kept_file(settings, ctx.seed)
    fetch(kept, ctx.folder / WORK)
    record = {(row["i"], row["step"]): row for row in read_json_lines(ctx.folder / WORK, repair=True)}
    reused = len(record) if kept is not None and kept.exists() else 0
    most = round(settings.count * settings.tries)
    done, drops, accepted = 0, Drops(), []
    for documents in maker.library.left_out.values() if maker.library else ():
        drops.add("source_in_other_language", documents)
    engine: Engine | None = None
    with ctx.progress("conversations", settings.count, "written") as bar:
        while len(accepted) < settings.count and done < most:
            items = [maker.item(i) for i in range(done, min(done + settings.batch, most))]
            missing = any((item.number, "answer") not in record for item in items)
            if missing and engine is None:
                engine = _open(settings)
            for sample in _batch(Writer(settings, ctx, engine, record), items, counter, drops):
                if len(accepted) < settings.count:
                    accepted.append(sample)
                    bar.advance()
            done += len(items)
    if engine is not None:
        engine.close()
    keep(ctx.folder / WORK, kept)
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in accepted]
    write_atomic(ctx.folder / "chat.jsonl", "".join(lines))
    return _result(settings, maker, accepted, drops, done, reused)


def _open(settings: InstructionsStage) -> Engine:
    options = EndpointOptions(**settings.endpoint.model_dump())
    return open_engine(settings.writer or settings.model, endpoint=options)


def _result(
    settings: InstructionsStage, maker: Maker, accepted: list[dict[str, Any]], drops: Drops, asked: int, reused: int
) -> StageResult:
    notes = maker.notes
    if reused:
        notes.append(
            f"{reused:,} answers were at hand (kept in the cache, or from before an interruption), not asked anew"
        )
    if len(accepted) < settings.count:
        notes.append(f"{len(accepted):,} of {settings.count:,} conversations after {asked:,} tries; raise `tries`")
    if not accepted:
        told = ", ".join(f"{rule} {row['items']}" for rule, row in drops.by_rule.items())
        raise LengthenError(
            f"None of {asked:,} conversations could be used.", why=f"refused: {told}",
            fix="use a stronger writer, or the `questions` stage, whose questions a program asks",
        )  # fmt: skip
    figures = {
        f"{name}s": dict(sorted(Tally(sample["meta"][name] for sample in accepted).items()))
        for name in ("kind", "language")
    }
    counts = {"conversations": len(accepted), "asked": asked, "tokens": sum(s["meta"]["tokens"] for s in accepted)}
    return StageResult(counts=counts, drops=drops.by_rule, figures=figures, notes=notes)


class Maker:
    """Items by number, the same for the same settings, documents, tokenizer and seed."""

    def __init__(self, settings: InstructionsStage, seed: int, counter: Counter) -> None:
        self.settings, self.seed = settings, seed
        self.library: Library | None = None
        self.languages: list[str] = list(settings.languages)
        if settings.about == "documents":
            self.library = open_library(settings.documents, counter, settings.max_tokens, settings.languages)
            self.languages = [language for language in settings.languages if language in self.library.languages]

    @property
    def notes(self) -> list[str]:
        """What the documents do not hold."""
        missing = sorted(set(self.settings.languages) - set(self.languages))
        notes = [f"The documents hold too little text in {language}: no conversation is in it" for language in missing]
        if self.library is not None:
            notes += [f"{name} was left out: too little text in languages" for name in self.library.left_out]
        return notes

    def item(self, i: int) -> Item:
        rng = named_random(self.seed, "instruction", i)
        language = rng.choice(self.languages)
        if self.library is None:
            return Item(i, language, "topic", question=self._topic(language, i))
        kind = rng.choice(self.settings.prompts)
        target = log_uniform(self.settings.min_tokens, self.settings.max_tokens, self.seed, i)
        redrawn: Tally[str] = Tally()
        try:
            stretch = self.library.draw(rng, target, language, redrawn)
        except Redraw as reason:
            return Item(i, language, kind, refused=reason.rule, redrawn=redrawn)
        units = bisect_right(stretch.ends, target) - 1
        text = "".join(stretch.units[:units]).strip()
        refused = "" if text else "no_document"
        return Item(i, language, kind, text, stretch.ids, stretch.ends[units], refused=refused, redrawn=redrawn)

    def _topic(self, language: str, i: int) -> str:
        """Every question once before any comes again (its answer is then another draw)."""
        known = topics(language, named_random(self.seed, "topics", 0))
        turn, place = divmod(i, len(known))
        return topics(language, named_random(self.seed, "topics", turn))[place]


class Writer:
    """Asks the engine what is not on record, and puts each answer on record as it comes."""

    def __init__(
        self, settings: InstructionsStage, ctx: StageContext, engine: Engine | None,
        record: dict[tuple[int, str], dict[str, Any]],
    ) -> None:  # fmt: skip
        self.settings, self.ctx, self.engine, self.record = settings, ctx, engine, record

    def answers(self, step: str, prompts: dict[int, str], room: int) -> dict[int, Answer]:
        found = {i: _recorded(self.record[i, step]) for i in prompts if (i, step) in self.record}
        requests = [
            Request(
                f"{i}/{step}", ({"role": "user", "content": text},), max_new_tokens=room,
                temperature=self.settings.temperature, top_p=self.settings.top_p,
                seed=derive_seed(self.ctx.seed, step, i) % 2**31,
            )
            for i, text in prompts.items() if i not in found
        ]  # fmt: skip
        failed = ""
        for answer in self._generate(requests):
            i = int(answer.id.split("/")[0])
            found[i] = answer
            if answer.finish_reason == "error":
                failed = answer.error or "no reason given"  # not on record: asked again when the stage is run again
                continue
            row = {"i": i, "step": step, "text": answer.text, "finish": answer.finish_reason}
            append_json_line(self.ctx.folder / WORK, row)
            self.record[i, step] = row
        if requests and all(found[int(r.id.split("/")[0])].finish_reason == "error" for r in requests):
            raise LengthenError(
                f"The writer {self.settings.writer or self.settings.model} answered none of {len(requests)} requests.",
                why=failed, fix="check the endpoint (or the memory), then run the same command again; answers are kept",
            )  # fmt: skip
        return found

    def _generate(self, requests: Sequence[Request]) -> Iterator[Answer]:
        if requests:
            assert self.engine is not None
            yield from self.engine.generate(requests)


def _recorded(row: dict[str, Any]) -> Answer:
    return Answer(f"{row['i']}/{row['step']}", row["text"], row["finish"])


def _batch(writer: Writer, items: list[Item], counter: Counter, drops: Drops) -> Iterator[dict[str, Any]]:
    """Conversations of a batch in the order of their numbers; what is refused goes to `drops`."""
    settings = writer.settings
    chosen = {item.number: item.question for item in items if item.question}
    prompts = {
        item.number: ask_for_questions(item.language, item.kind, item.text, settings.questions)
        for item in items if item.text
    }  # fmt: skip
    listed = writer.answers("questions", prompts, settings.question_tokens)
    refused: dict[int, str] = {item.number: item.refused for item in items if item.refused}
    for i, answer in listed.items():
        questions = questions_in(answer.text, cut=answer.finish_reason == "length")
        if answer.finish_reason == "error":
            refused[i] = "writer_failed"
        elif not questions:
            refused[i] = "no_question"
        else:
            chosen[i] = named_random(writer.ctx.seed, "chosen", i).choice(questions[: settings.questions])
    asked = {item.number: _question(settings, writer.ctx.seed, item, chosen[item.number])
             for item in items if item.number in chosen}  # fmt: skip
    replies = writer.answers("answer", asked, settings.answer_tokens)
    for item in items:
        for rule, times in item.redrawn.items():
            drops.add(f"redrawn:{rule}", times)
        rule = refused.get(item.number) or refusal(replies[item.number], chosen[item.number], settings)
        if rule:
            drops.add(rule)
            continue
        yield _sample(settings, item, asked[item.number], replies[item.number].text.strip(), counter)


def questions_in(text: str, *, cut: bool = False) -> list[str]:
    """Questions of a numbered list, each once; the last line is left out where the answer was cut off."""
    lines = text.strip().splitlines()
    found = [match[2] for line in (lines[:-1] if cut else lines) if (match := _LINE.match(line))]
    return list(dict.fromkeys(question for question in found if len(question) >= 8))


def refusal(answer: Answer, question: str, settings: InstructionsStage) -> str:
    """The rule by which an answer is refused, or nothing."""
    text = answer.text.strip()
    if answer.finish_reason == "error":
        return "writer_failed"
    if answer.finish_reason == "length":
        return "answer_cut_off"
    words = count_words(text)
    if words < settings.min_answer_words:
        return "answer_too_short"
    if text.lower().startswith(question.lower()) and words <= count_words(question) + settings.min_answer_words:
        return "answer_repeats_the_question"
    if repetition(text).share > _MOST_REPEATED:
        return "answer_repeats_itself"
    return ""


def _question(settings: InstructionsStage, seed: int, item: Item, question: str) -> str:
    if not item.text:
        return question
    first = named_random(seed, "first", item.number).random() < settings.question_first
    form = ANSWER[item.language]
    return f"{question}\n\n{item.text}" if first else form.format(text=item.text, question=question)


def _sample(
    settings: InstructionsStage, item: Item, user: str, answer: str, counter: Counter
) -> dict[str, Any]:  # fmt: skip
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    meta = {
        "language": item.language, "kind": item.kind, "documents": list(item.documents),
        "document_tokens": item.tokens, "tokens": counter.conversation(messages),
        "writer": settings.writer or settings.model,
    }  # fmt: skip
    return {"id": f"instructions-{item.number:06d}", "messages": messages, "source": "instructions", "meta": meta}
