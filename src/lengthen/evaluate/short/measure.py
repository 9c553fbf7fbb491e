"""The short set as a measure, and short tasks of lm-evaluation-harness by name."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from lengthen.common.errors import LengthenError, MissingExtra
from lengthen.common.files import append_json_line, read_json_lines
from lengthen.evaluate.cells import as_samples, line_frame
from lengthen.evaluate.ngrams import text_of
from lengthen.evaluate.own.icl import IclMaker, score_label
from lengthen.evaluate.own.labelled import labelled
from lengthen.evaluate.perplexity import over_documents
from lengthen.evaluate.samples import Sample
from lengthen.evaluate.short.instructions import INSTRUCTIONS
from lengthen.evaluate.short.instructions import NEW_TOKENS as INSTRUCTION_TOKENS
from lengthen.evaluate.short.texts import chats, code, prose
from lengthen.evaluate.suites import Job, Measure, Row, cell_context
from lengthen.generate import is_endpoint, open_engine
from lengthen.generate.engine import Engine, Message
from lengthen.recipe.base import Settings

if TYPE_CHECKING:
    import torch

NAME = "short"
CLASSIFY_LENGTH, SHOTS, CLASSIFY_CONTEXTS, CLASSIFY_QUESTIONS = 2048, 5, 20, 2
PREDICTIONS = "short-predictions.jsonl"
ASKED = ("classify", "instructions")
"""Tasks that only ask, so that an endpoint can run them; the others need losses."""


class ShortOptions(Settings):
    """Options of the short suite."""

    reference: str | None = Field(
        default=None,
        description="Starting model, for the divergence from it (task kl): a folder, a Hub name, 'default'.",
    )
    lm_eval: list[str] = Field(
        default_factory=list, description="Tasks of lm-evaluation-harness by name (extra lm-eval)."
    )
    lm_eval_limit: int | None = Field(default=None, ge=1, description="Most questions of each of these tasks.")


def run(job: Job, engine: Engine, done: frozenset[str]) -> Iterator[tuple[str, Row]]:
    """One row a task, in turn; finished ones are not measured again."""
    tasks: dict[str, Callable[[Job, Engine], Row]] = {
        "prose": lambda job, engine: _loss(job, engine, "prose", [_plain(engine, t) for t in prose()]),
        "code": lambda job, engine: _loss(job, engine, "code", [_plain(engine, t) for t in code()]),
        "chat": lambda job, engine: _loss(job, engine, "chat", [_chat(job, c) for c in chats()]),
        "kl": _divergence,
        "classify": _classify,
        "instructions": _instructions,
    }
    for task in chosen(job):
        if task not in done:
            yield task, {"suite": NAME, "task": task, "length": 0, **tasks[task](job, engine)}
    for task in job.options.lm_eval:
        key = f"lm_eval:{task}"
        if key not in done:
            yield key, {"suite": NAME, "task": key, "length": 0, **_harness(job, task)}


def chosen(job: Job) -> list[str]:
    """Tasks of the set, without the harness's."""
    if job.choice.suite in SUITE.tasks:
        return [job.choice.suite]
    if job.choice.tasks is not None:
        return list(job.choice.tasks)
    return [task for task in SUITE.tasks if task != "kl" or job.options.reference]


def parts(job: Job) -> list[tuple[str, Job]]:
    """One for each task."""

    def part(tasks: list[str], harness: list[str]) -> Job:
        choice = job.choice.model_copy(update={"suite": NAME, "tasks": tasks})
        return replace(job, choice=choice, options=job.options.model_copy(update={"lm_eval": harness}))

    own = [(task, part([task], [])) for task in chosen(job)]
    return own + [(f"lm_eval:{task}", part([], [task])) for task in job.options.lm_eval]


def check(job: Job) -> None:
    """Refuse what this model, these options or this installation can never measure."""
    losses = [task for task in chosen(job) if task not in ASKED]
    if is_endpoint(job.settings.model) and losses:
        raise _no_losses(f"short: {', '.join(losses)}")
    if "kl" in losses and job.options.reference is None:
        raise _no_reference()
    if not job.options.lm_eval:
        return
    if is_endpoint(job.settings.model):
        raise LengthenError(
            "lm-evaluation-harness runs here with a model in this process only.",
            fix="name the model's folder, or run the harness itself against the endpoint",
        )
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtra.of("Short tasks of lm-evaluation-harness", "lm-eval")


def texts(job: Job) -> Iterator[str]:
    """All texts, questions and references of the set; the harness's data are its own."""
    tasks = chosen(job)
    if {"prose", "kl"} & set(tasks):
        yield from prose()
    if {"code", "kl"} & set(tasks):
        yield from code()
    if {"chat", "kl"} & set(tasks):
        yield from ("\n".join(message["content"] for message in chat) for chat in chats())
    if "classify" in tasks:
        yield from map(text_of, classify_samples(job))
    if "instructions" in tasks:
        yield from map(text_of, instruction_samples(job))


def _no_losses(what: str) -> LengthenError:
    return LengthenError(
        f"{what}: loss and divergence need the model in this process; an endpoint gives no token losses.",
        fix=f"name the model's folder, or ask only: tasks: [{', '.join(ASKED)}]",
    )


def _no_reference() -> LengthenError:
    return LengthenError(
        "The task kl needs the starting model.", fix="name it in the suite's options: {reference: default}"
    )


# --------------------------------------------------------------------------------------------------------------- loss
Marked = tuple[list[int], list[bool]]
"""Tokens of a text, and which of them count."""


def _plain(engine: Engine, text: str) -> Marked:
    ids = _local(engine).tokenizer(text)["input_ids"]
    return ids, [True] * len(ids)


def _chat(job: Job, messages: Sequence[Message]) -> Marked:
    """A chat through the model's template; the assistant's turns count. Without a template: turns as plain lines."""
    tokenizer, options = job.prompts.tokenizer, job.prompts.options
    ids: list[int] = []
    marks: list[bool] = []
    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    for turn in range(1, len(messages), 2):
        if job.prompts.template == "on":
            asked = tokenizer.apply_chat_template(plain[:turn], tokenize=False, add_generation_prompt=True, **options)
            whole = tokenizer.apply_chat_template(plain[: turn + 1], tokenize=False, **options)
        else:
            lines = [f"{m['role'].title()}: {m['content']}\n" for m in messages[: turn + 1]]
            asked, whole = job.prompts.begin + "".join(lines[:-1]) + "Assistant:", job.prompts.begin + "".join(lines)
        before = tokenizer.backend_tokenizer.encode(str(asked), add_special_tokens=False).ids
        after = tokenizer.backend_tokenizer.encode(str(whole), add_special_tokens=False).ids
        marks += [False] * (len(before) - len(marks)) + [True] * (len(after) - len(before))
        ids = after
    return ids, marks[: len(ids)]


def _local(engine: Engine) -> Any:
    if not hasattr(engine, "loss_by_token"):
        raise _no_losses("short")
    return engine


def _loss(job: Job, engine: Engine, task: str, texts: Sequence[Marked]) -> Row:
    """Mean loss of the tokens that count, in nats; every token weighs the same."""
    found: list[np.ndarray] = []
    with job.ctx.progress(f"short {task}", len(texts), "texts") as bar:
        for ids, marks in texts:
            losses = _local(engine).loss_by_token(ids).numpy().astype(np.float64)
            found.append(losses[np.array(marks[1:], dtype=bool)])
            bar.advance()
    return _mean(found, 5)


def _mean(found: Sequence[np.ndarray], digits: int) -> Row:
    """Mean over all tokens of all texts, with its interval over texts."""
    joined = np.concatenate(found)
    row: Row = {"value": round(float(joined.mean()), digits), "unit": "nats", "n": len(found), "tokens": len(joined)}
    return row | over_documents(found)


def _divergence(job: Job, engine: Engine) -> Row:
    """Mean KL(starting model || this model) over the positions of short texts, in nats."""
    if job.options.reference is None:
        raise _no_reference()
    start = open_engine(job.options.reference, dtype=job.settings.dtype)
    try:
        if start.tokenizer.get_vocab() != _local(engine).tokenizer.get_vocab():  # type: ignore[attr-defined]
            raise LengthenError(
                f"{job.options.reference} has another vocabulary, so its predictions cannot be compared.",
                fix="name the model that this one was trained from",
            )
        texts = [_plain(engine, t)[0] for t in (*prose(), *code())] + [_chat(job, c)[0] for c in chats()]
        found: list[np.ndarray] = []
        with job.ctx.progress("short kl", len(texts), "texts") as bar:
            for ids in texts:
                kl_T = divergence(log_probs(start, ids), log_probs(engine, ids))
                found.append(kl_T.numpy().astype(np.float64))
                bar.advance()
    finally:
        start.close()
    return _mean(found, 6)


def log_probs(engine: Any, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of the next token at each position, fp32: (T, V)."""
    import torch

    model = engine.reader.model
    with torch.inference_mode():
        logits_TV = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0]
    return torch.log_softmax(logits_TV.float().cpu(), dim=-1)


def divergence(start_TV: torch.Tensor, now_TV: torch.Tensor) -> torch.Tensor:
    """KL(start || now) at each position, in nats: (T,)."""
    return (start_TV.exp() * (start_TV - now_TV)).sum(-1)


# ---------------------------------------------------------------------------------------------------------- questions
def classify_samples(job: Job) -> list[Sample]:
    """Five examples of each of five classes of news, labels mapped to numbers; a prompt has about 2,000 tokens."""
    frame, lead = line_frame(job.prompts)
    maker = IclMaker(
        labelled("bbc"), job.prompts.counter, frame, CLASSIFY_LENGTH, job.seed, CLASSIFY_QUESTIONS, rounds=SHOTS
    )
    found: list[Sample] = []
    for index in range(CLASSIFY_CONTEXTS):
        drafts = maker.plan(index).build(SHOTS * len(maker.classes))
        found += as_samples(drafts, NAME, "classify", CLASSIFY_LENGTH, maker.new_tokens, index, lead)
    return found


def instruction_samples(job: Job) -> list[Sample]:
    found = []
    for i, item in enumerate(INSTRUCTIONS):
        name = cell_context(NAME, "instructions", 0, i)
        meta = {"check": item.name}
        found.append(Sample(name, NAME, "instructions", 0, name, item.text, (), INSTRUCTION_TOKENS, meta=meta))
    return found


def _classify(job: Job, engine: Engine) -> Row:
    return _asked(job, engine, classify_samples(job), lambda s, output: score_label(output, s.refs[0]))


def _instructions(job: Job, engine: Engine) -> Row:
    checks = {item.name: item.check for item in INSTRUCTIONS}
    return _asked(job, engine, instruction_samples(job), lambda s, output: float(checks[s.meta["check"]](output)))


def _asked(job: Job, engine: Engine, samples: Sequence[Sample], score: Callable[[Sample, str], float]) -> Row:
    """Ask what was not answered yet; answers stand in `short-predictions.jsonl`."""
    from lengthen.evaluate.statistics import interval

    path = job.ctx.folder / PREDICTIONS
    outputs = {row["id"]: row["output"] for row in read_json_lines(path, repair=True)}
    by_id = {s.id: s for s in samples}
    waiting = [job.prompts.request(s) for s in samples if s.id not in outputs]
    failed: list[str] = []
    with job.ctx.progress(f"short {samples[0].task}", len(samples), "prompts", len(samples) - len(waiting)) as bar:
        for answer in engine.generate(waiting):
            bar.advance()
            if answer.error is not None:
                failed.append(answer.error)
                continue
            outputs[answer.id] = answer.text
            found = score(by_id[answer.id], answer.text)
            row = {"id": answer.id, "task": samples[0].task, "output": answer.text, "score": found}
            append_json_line(path, row)
    if failed:
        raise LengthenError(
            f"{len(failed)} of {len(samples)} questions have no answer ({failed[0]})",
            fix="run again to ask them",
        )
    scores = [score(s, outputs[s.id]) for s in samples]
    found = interval(scores, [s.context for s in samples])
    return {"score": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4), "n": found.n}


# ------------------------------------------------------------------------------------------- lm-evaluation-harness
def _harness(job: Job, task: str) -> Row:
    """A task of lm-evaluation-harness with its own settings, through its Python API; its first metric."""
    try:
        # Its annotations describe less than it takes and gives.
        lm_eval: Any = importlib.import_module("lm_eval")
        huggingface: Any = importlib.import_module("lm_eval.models.huggingface")
    except ImportError as error:
        raise MissingExtra.of("Short tasks of lm-evaluation-harness", "lm-eval") from error
    from lengthen.train.load import load_model

    made = job.extension
    model = load_model(job.settings.model, dtype=job.settings.dtype, rope=made.parameters, window=made.window)
    model.set_attn_implementation("sdpa")
    wrapped = huggingface.HFLM(pretrained=model, tokenizer=job.prompts.tokenizer, batch_size=1)
    try:
        result = lm_eval.simple_evaluate(
            model=wrapped, tasks=[task], limit=job.options.lm_eval_limit, log_samples=False
        )
    except (OSError, KeyError, ValueError) as error:  # no such task, or its data cannot be had
        raise LengthenError(
            f"lm-evaluation-harness cannot run '{task}': {error}.",
            fix="see `lm_eval ls tasks`; its data come from the Hub",
        ) from error
    if result is None or task not in result["results"]:
        raise LengthenError(f"lm-evaluation-harness has no result for '{task}'.", fix="see `lm_eval ls tasks`")
    found = {k: v for k, v in result["results"][task].items() if isinstance(v, float) and "stderr" not in k}
    metric = next(iter(found))
    samples = result.get("n-samples", {}).get(task, {}).get("effective", 0)
    error = result["results"][task].get(metric.replace(",", "_stderr,", 1))
    row: Row = {"score": round(found[metric], 4), "metric": metric.split(",")[0], "n": samples}
    if isinstance(error, float):
        row |= {"low": round(found[metric] - 1.96 * error, 4), "high": round(found[metric] + 1.96 * error, 4)}
    return json.loads(json.dumps(row))


SUITE = Measure(
    NAME,
    run=run,
    tasks=dict.fromkeys(("prose", "code", "chat", "kl"), 0) | {"classify": 8, "instructions": INSTRUCTION_TOKENS},
    options=ShortOptions,
    counted="its texts and questions are fixed; options.lm_eval_limit bounds those of lm-evaluation-harness",
    parts=parts,
    check=check,
    texts=texts,
)
