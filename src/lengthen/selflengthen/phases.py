"""The phases of a macro-iteration: instructions, answers with their extensions, length demands, held-out prompts."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.common.seeds import derive_seed, named_random
from lengthen.common.words import count_longen, is_cjk
from lengthen.selflengthen import extend as extending
from lengthen.selflengthen.checks import Verdict
from lengthen.selflengthen.choose import Selection
from lengthen.selflengthen.constraints import ROLE as WEAVE
from lengthen.selflengthen.constraints import Scale, scale_for, too_narrow, weave
from lengthen.selflengthen.distinct import Pool
from lengthen.selflengthen.instruct import Filters, evaluation_pool, from_templates, take_listed
from lengthen.selflengthen.lengths import names_length
from lengthen.selflengthen.pipeline import Listed, Pipeline, Source, Task, Totals, Traffic
from lengthen.selflengthen.proposals import Proposals, TooFew, checked_seeds
from lengthen.selflengthen.respond import respond
from lengthen.selflengthen.serve import Serving
from lengthen.selflengthen.store import Key, Outcome, Store
from lengthen.selflengthen.wording import prompt_of, read_seeds, rows_of
from lengthen.selflengthen.work import Work

Instructions = dict[str, tuple[str, str]]
"""item -> (language, instruction)."""
USED_UP = "the list of instructions is used up"


@dataclass
class Crew:
    """What a phase needs to get answers: the work, who serves it, where progress is shown."""

    work: Work
    serving: Serving
    ctx: StageContext

    def run(self, source: Source, after: int, roles: Sequence[str], label: str, total: int) -> Traffic:
        """Run the tasks of the phase that is open. Returns its traffic so far, with that of earlier processes."""
        settings = self.work.settings
        with self.ctx.progress(label, total, "tasks") as bar:
            engines = self.serving.engines(after, roles)
            narrower = self.work.narrow(self.serving.window)
            if narrower:
                self.serving.note(narrower)
            totals = Totals.of(self.work.store)
            pipeline = Pipeline(
                self.work.store, engines, in_flight=settings.serve.in_flight, error_tries=settings.retry.error_tries,
                bar=bar, record=totals.save,
            )  # fmt: skip
            return totals.before + pipeline.run(source)


# --------------------------------------------------------------------------------------------------- instructions
def held_out_prompts(work: Work) -> list[tuple[str, str]]:
    """(language, prompt) of the held-out prompts, at most `held_out.count`."""
    settings = work.settings.held_out
    if settings.count == 0:
        return []
    if settings.file:
        texts = [prompt_of(row, settings.file, i) for i, row in enumerate(rows_of(settings.file, "held_out.file"), 1)]
        pairs = [("zh" if is_cjk(text) else "en", text) for text in texts]
        known = [pair for pair in pairs if pair[0] in work.wordings]
        if not known:
            raise LengthenError(
                f"held_out.file: {settings.file} holds no prompt in {', '.join(work.wordings)}.",
                why=f"its {len(pairs)} prompts are in other languages" if pairs else "it is empty",
                fix="give another file, add their language to `languages`, or set held_out.count to 0",
            )
        # Published files are often sorted by length or kind: the first 40 would be of one kind.
        count = min(settings.count, len(known))
        pairs = [known[i * len(known) // count] for i in range(count)]
    else:
        columns = [
            [(name, text) for text in from_templates(wording, work.seed, held_out=True)]
            for name, wording in work.wordings.items()
        ]
        pairs = [column[i] for i in range(max(map(len, columns))) for column in columns if i < len(column)]
    return pairs[: settings.count]


def seeds_of(work: Work) -> dict[str, list[str]]:
    """Seed instructions by language, the packaged ones or those of the file; what is left out there is counted."""
    settings = work.settings.instruct
    if not settings.seeds:
        return {name: wording.seeds() for name, wording in work.wordings.items()}
    seeds, others = read_seeds(settings.seeds, list(work.wordings))
    for number, text in others:
        work.judge(Key(0, "instruct", f"seed{number:06}"), Verdict("other_language", text[:120]))
    return seeds


def filters_of(work: Work, iteration: int, seeds: dict[str, list[str]]) -> Filters:
    """What new instructions are compared with: all earlier ones, the seeds (a copied seed is not new), and the prompts
    of evaluations and held-out answers."""
    settings = work.settings.instruct
    there = Pool(settings.near_duplicate)
    earlier = [text for before, _, _, text in work.store.instructions() if before < iteration]
    for text in [*earlier, *(text for texts in seeds.values() for text in texts)]:
        there.add(text)
    apart = [text for _, text in held_out_prompts(work)]
    evaluation = evaluation_pool(
        work.settings.evaluation_files(), apart, settings.near_duplicate, settings.shared_ngram
    )
    return Filters(settings.above_words, settings.below_words, there, evaluation)


def instruct(crew: Crew, iteration: int, count: int) -> Instructions:
    """New instructions of a macro-iteration, distinct from all before and from every evaluation prompt."""
    work, settings = crew.work, crew.work.settings.instruct
    if work.store.begin(iteration, "instruct"):
        seeds = seeds_of(work) if settings.source == "self" else {}
        filters = filters_of(work, iteration, seeds)
        info: dict = {"wanted": count}
        if settings.source == "self":
            proposals = Proposals(work, iteration, count, checked_seeds(seeds, settings.shown), filters)
            try:
                traffic = crew.run(proposals, iteration - 1, ("base",), f"instructions {iteration}", count)
            except TooFew:
                work.store.failed(iteration, "instruct")
                raise
            made = proposals.accepted
            info |= traffic.facts()
        else:
            first = (work.store.phase(iteration - 1, "instruct") or {}).get("next", 0)
            made, info["next"] = take_listed(work, iteration, first, count, filters)
        if not made:
            work.store.failed(iteration, "instruct")
            raise LengthenError(
                f"Macro-iteration {iteration} has no instruction.",
                why=top_reasons(work.store, iteration, role="instruct") or USED_UP,
                fix=_without_instructions(work, iteration),
            )
        for number, (language, text) in enumerate(made):
            work.store.add_instruction(iteration, f"i{number:05}", language, settings.source, text)
        work.store.end(iteration, "instruct", {**info, "made": len(made)})
    return {item: (language, text) for _, item, language, text in work.store.instructions(iteration)}


def _without_instructions(work: Work, iteration: int) -> str:
    look = f"; `lengthen inspect {work.store.path}` shows what was refused"
    if iteration == 1:
        return "give more seeds or instructions (instruct.seeds, instruct.file), or another instruct.source" + look
    if iteration > work.settings.trainings:
        return "set final.pool to [extended], and run again: it goes on from here" + look
    return (
        f"set iterations to {iteration - 1} and final.pool to [extended], and run again: it goes on from here; or "
        "begin anew with more instructions" + look
    )


# ------------------------------------------------------------------------------------------ answers and extensions
@dataclass
class Responses:
    """Tasks that answer the instructions, and the selection among their texts as it becomes certain."""

    work: Work
    iteration: int
    instructions: Instructions
    selection: Selection
    _todo: deque[tuple[str, int]] = field(default_factory=deque)

    @classmethod
    def of(cls, work: Work, iteration: int, instructions: Instructions) -> Responses:
        samples = work.settings.respond.samples
        todo = deque((item, sample) for item in instructions for sample in range(samples))
        seed = derive_seed(work.seed, "response", iteration)
        return cls(work, iteration, instructions, Selection(seed, work.settings.select, len(todo)), todo)

    def next_task(self) -> Task | None:
        return self._task(*self._todo.popleft()) if self._todo else None

    def more(self) -> bool:
        return bool(self._todo)

    def _task(self, item: str, sample: int) -> Task:
        language, text = self.instructions[item]
        yield from respond(self.work, self.iteration, item, language, text, sample)
        outcome = self.work.store.outcome(self.iteration, "response", item, sample)
        if outcome is not None and outcome.text is not None:
            self.selection.add(item, sample, outcome.words)
        self.selection.task_ended()


@dataclass
class Extensions:
    """Tasks that extend the selected texts. Beside `Responses` in one pipeline they start while others still answer."""

    work: Work
    iteration: int
    responses: Responses
    started: int = 0
    _todo: deque[tuple[str, int, int]] = field(default_factory=deque)
    _looked_at: int = -1

    def next_task(self) -> Task | None:
        task = self.responses.next_task()
        if task is not None:
            return task
        if not self._todo:
            self._look()
        if not self._todo:
            return None
        self.started += 1
        return self._task(*self._todo.popleft())

    def more(self) -> bool:
        self._look()
        return bool(self._todo) or self.responses.more()

    def _look(self) -> None:
        """Take over decisions. Looking costs a pass over the open texts, so it waits for 1% of the tasks to end."""
        selection = self.responses.selection
        moved = self._looked_at - selection.to_come
        if self._looked_at >= 0 and selection.to_come and moved < max(1, selection.to_come // 100):
            return
        self._looked_at = selection.to_come
        for item, sample, kept in selection.decided():
            self.work.store.keep(self.iteration, "response", item, sample, kept)
            if kept:
                self._todo.extend((item, sample, n) for n in range(self.work.settings.extend.samples))

    def _task(self, item: str, sample: int, number: int) -> Task:
        language, instruction = self.responses.instructions[item]
        outcome = self.work.store.outcome(self.iteration, "response", item, sample)
        if outcome is None or outcome.text is None:
            raise RuntimeError(f"a selected text is not there: {item}")
        name = f"{item}~{sample}"
        yield from extending.extend(self.work, self.iteration, name, language, instruction, outcome.text, number)


def write(crew: Crew, iteration: int, instructions: Instructions) -> None:
    """Answers, selection, extensions, selection. An endpoint gets both kinds of requests at once."""
    work = crew.work
    if not work.store.begin(iteration, "write"):
        return
    responses = Responses.of(work, iteration, instructions)
    extensions = Extensions(work, iteration, responses)
    after, total = iteration - 1, len(instructions) * work.settings.respond.samples
    if crew.serving.flow:
        traffic = crew.run(extensions, after, ("generator", "extender"), f"texts {iteration}", 2 * total)
    else:
        crew.run(responses, after, ("generator",), f"responses {iteration}", total)
        traffic = crew.run(extensions, after, ("extender",), f"extensions {iteration}", total)
    select(work, iteration, extending.ROLE)
    kept = len(work.store.outcomes(iteration, extending.ROLE, kept=True))
    work.store.end(iteration, "write", {**traffic.facts(), "extensions_kept": kept})


def select(work: Work, iteration: int, role: str) -> None:
    """Length-biased selection over all texts of a role."""
    outcomes = [o for o in work.store.outcomes(iteration, role) if o.text is not None]
    selection = Selection(derive_seed(work.seed, role, iteration), work.settings.select, 0)
    for outcome in outcomes:
        selection.add(outcome.item, outcome.sample, outcome.words)
    chosen = {(item, sample): kept for item, sample, kept in selection.decided()}
    if role == extending.ROLE:
        for one in _beyond_each(work, iteration, [o for o in outcomes if chosen[o.item, o.sample]]):
            chosen[one.item, one.sample] = False
    for (item, sample), kept in chosen.items():
        work.store.keep(iteration, role, item, sample, kept)


def _beyond_each(work: Work, iteration: int, selected: list[Outcome]) -> list[Outcome]:
    """Selected extensions beyond `extend.per_instruction` of one instruction, the shortest; each is counted."""
    each = work.settings.extend.per_instruction
    if each is None:
        return []
    by_instruction: dict[str, list[Outcome]] = {}
    for outcome in selected:
        by_instruction.setdefault(outcome.item.split("~")[0], []).append(outcome)
    over: list[Outcome] = []
    for outcomes in by_instruction.values():
        for place, one in enumerate(sorted(outcomes, key=lambda o: (-o.words, o.item, o.sample)), 1):
            rule = "same_instruction" if place > each else ""
            verdict = Verdict(rule, f"{one.words} words" if rule else "", one.words, one.clean_words)
            if not work.judge(Key(iteration, "select", one.item, one.sample), verdict).accepted:
                over.append(one)
    return over


# --------------------------------------------------------------------------------------- final texts and demands
def final_texts(crew: Crew, iteration: int, instructions: Instructions) -> None:
    """Fresh instructions, answered by the last Generator."""
    work = crew.work
    if not work.store.begin(iteration, "final"):
        return
    samples = work.settings.final.samples
    tasks: Iterable[Task] = (
        respond(work, iteration, item, language, text, sample, role="final")
        for item, (language, text) in instructions.items()
        for sample in range(samples)
    )
    traffic = crew.run(Listed.of(tasks), iteration - 1, ("generator",), "final texts", len(instructions) * samples)
    work.store.end(iteration, "final", traffic.facts())


def demands(crew: Crew, pool: list[tuple[Outcome, str, str]], iteration: int) -> None:
    """Weave length demands into the instructions of the pool: (text's outcome, language, instruction).

    Raises:
        LengthenError: the given band would leave too few texts, while it can still be changed.
    """
    work, settings = crew.work, crew.work.settings.constraints
    if work.store.phase(iteration, "weave") is not None:
        return
    lengths = [count_longen(outcome.text or "") for outcome, _, _ in pool]
    scale = scale_for(lengths, settings)
    _enough_held(work, pool, scale)
    work.store.begin(iteration, "weave")
    note = too_narrow(lengths, scale, settings)
    if note:
        print(f"note: {note}", file=sys.stderr, flush=True)
    tasks = (
        weave(work, outcome.iteration, f"{outcome.role}~{outcome.item}", outcome.sample, language, instruction,
              outcome.text or "", scale)
        for outcome, language, instruction in pool
        if demanded(work, outcome)
    )  # fmt: skip
    traffic = crew.run(Listed.of(tasks), iteration - 1, ("base",), "length demands", len(pool))
    info = {"low": scale.low, "high": scale.high, "step": scale.step, **traffic.facts()}
    work.store.end(iteration, "weave", info | ({"note": note} if note else {}))


def _enough_held(work: Work, pool: list[tuple[Outcome, str, str]], scale: Scale) -> None:
    """With `without_band: drop`, enough texts of the pool lie on the scale, or need not."""
    settings, least = work.settings.constraints, work.settings.training.least_rows
    free = sum(not demanded(work, o) and not names_length(said, work.wordings[name]) for o, name, said in pool)
    held = scale.held([count_longen(outcome.text or "") for outcome, _, _ in pool if demanded(work, outcome)])
    if settings.without_band == "bare" or not pool or not work.settings.final.train or free + held >= least:
        return
    raise LengthenError(
        f"{held:,} of {len(pool):,} texts have {scale.low:,} to {scale.high:,} words, and the others would be dropped "
        f"(constraints); training.least_rows is {least}.",
        fix="set constraints.low, high and step to auto, or constraints.without_band to bare, and run again: nothing "
        "was made with them yet, and it goes on from here",
    )


def demanded(work: Work, outcome: Outcome) -> bool:
    """Whether a row of the final data gets a length demand (constraints.share)."""
    draw = named_random(work.seed, "demanded", outcome.iteration, outcome.role, outcome.item, outcome.sample).random()
    return draw < work.settings.constraints.share


def asks_for_a_length(work: Work, outcome: Outcome, language: str, instruction: str) -> bool:
    """Whether an instruction that gets no demand names a length, which nobody has checked; counted (has_length)."""
    length = names_length(instruction, work.wordings[language])
    if length:
        key = Key(outcome.iteration, WEAVE, f"{outcome.role}~{outcome.item}", outcome.sample)
        work.judge(key, Verdict("has_length", f"{length}: {instruction[:160]}", outcome.words))
    return bool(length)


def woven(work: Work, outcome: Outcome) -> Outcome | None:
    """The instruction with its demand, as the outcome of the weaving."""
    return work.store.outcome(outcome.iteration, WEAVE, f"{outcome.role}~{outcome.item}", outcome.sample)


def top_reasons(store: Store, iteration: int, most: int = 4, role: str | None = None) -> str:
    """The commonest rules that refused something in a macro-iteration (in one role of it), for an error."""
    rows = store.query(
        "SELECT role, rule, COUNT(*) FROM verdicts WHERE iteration=? AND rule!='' AND role=COALESCE(?, role) "
        "GROUP BY role, rule ORDER BY 3 DESC LIMIT ?",
        (iteration, role, most),
    )
    return ", ".join(f"{role}: {rule} {count}x" for role, rule, count in rows)
