"""The short set as a measure, and short tasks of lm-evaluation-harness by name."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lengthen.common.errors import LengthenError, MissingExtra
from lengthen.common.files import append_json_line, read_json_lines
from lengthen.evaluate.cells import as_samples, line_frame
from lengthen.evaluate.own.icl import IclMaker, score_label
from lengthen.evaluate.own.labelled import labelled
from lengthen.evaluate.samples import Sample
from lengthen.evaluate.short.instructions import INSTRUCTIONS
from lengthen.evaluate.short.instructions import NEW_TOKENS as INSTRUCTION_TOKENS
from lengthen.evaluate.short.texts import chats, code, prose
from lengthen.evaluate.suites import Job, Measure, Row, cell_context
from lengthen.generate import open_engine
from lengthen.generate.engine import Engine, Message
from lengthen.models import model_facts
from lengthen.recipe.base import Settings
from lengthen.recipe.rope import Extension, extend

if TYPE_CHECKING:
    import torch

NAME = "short"
CLASSIFY_LENGTH, SHOTS, CLASSIFY_CONTEXTS, CLASSIFY_QUESTIONS = 2048, 5, 20, 2
PREDICTIONS = "short-predictions.jsonl"


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
    chosen = (
        job.choice.tasks if job.choice.tasks is not None else [t for t in tasks if t != "kl" or job.options.reference]
    )
    if job.choice.suite in tasks:
        chosen = [job.choice.suite]
    for task in chosen:
        if task not in done:
            yield task, {"suite": NAME, "task": task, "length": 0, **tasks[task](job, engine)}
    for task in job.options.lm_eval:
        key = f"lm_eval:{task}"
        if key not in done:
            yield key, {"suite": NAME, "task": key, "length": 0, **_harness(job, task)}


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
        raise LengthenError(
            "Loss and divergence need the model in this process; an endpoint gives no token losses.",
            fix="name the model's folder, or leave these tasks out: tasks: [classify, instructions]",
        )
    return engine


def _loss(job: Job, engine: Engine, task: str, texts: Sequence[Marked]) -> Row:
    """Mean loss of the tokens that count, in nats; every token weighs the same."""
    total, count = 0.0, 0
    with job.ctx.progress(f"short {task}", len(texts), "texts") as bar:
        for ids, marks in texts:
            losses = _local(engine).loss_by_token(ids).tolist()
            kept = [loss for loss, mark in zip(losses, marks[1:]) if mark]
            total, count = total + sum(kept), count + len(kept)
            bar.advance()
    return {"value": round(total / count, 5), "unit": "nats", "n": len(texts), "tokens": count}


def _divergence(job: Job, engine: Engine) -> Row:
    """Mean KL(starting model || this model) over the positions of short texts, in nats."""
    if job.options.reference is None:
        raise LengthenError(
            "The task kl needs the starting model.", fix="name it in the suite's options: {reference: default}"
        )
    start = open_engine(job.options.reference, dtype=job.settings.dtype)
    try:
        if start.tokenizer.get_vocab() != _local(engine).tokenizer.get_vocab():  # type: ignore[attr-defined]
            raise LengthenError(
                f"{job.options.reference} has another vocabulary, so its predictions cannot be compared.",
                fix="name the model that this one was trained from",
            )
        texts = [_plain(engine, t)[0] for t in (*prose(), *code())] + [_chat(job, c)[0] for c in chats()]
        total, count = 0.0, 0
        with job.ctx.progress("short kl", len(texts), "texts") as bar:
            for ids in texts:
                kl_T = divergence(log_probs(start, ids), log_probs(engine, ids))
                total, count = total + float(kl_T.sum()), count + len(kl_T)
                bar.advance()
    finally:
        start.close()
    return {"value": round(total / count, 6), "unit": "nats", "n": len(texts), "tokens": count}


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
    with job.ctx.progress(f"short {samples[0].task}", len(samples), "prompts", len(samples) - len(waiting)) as bar:
        for answer in engine.generate(waiting):
            bar.advance()
            if answer.error is not None:
                raise LengthenError(f"{answer.id} got no answer: {answer.error}", fix="run the same command again")
            outputs[answer.id] = answer.text
            found = score(by_id[answer.id], answer.text)
            row = {"id": answer.id, "task": samples[0].task, "output": answer.text, "score": found}
            append_json_line(path, row)
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
    from lengthen.generate import is_endpoint
    from lengthen.train.load import load_model

    if is_endpoint(job.settings.model):
        raise LengthenError(
            "lm-evaluation-harness runs here with a model in this process only.",
            fix="name the model's folder, or run the harness itself against the endpoint",
        )
    made = Extension(None, None)
    if job.settings.rope is not None:
        made = extend(model_facts(job.settings.model), None, job.settings.rope)
    model = load_model(job.settings.model, dtype=job.settings.dtype, rope=made.parameters, window=made.window)
    model.set_attn_implementation("sdpa")
    wrapped = huggingface.HFLM(pretrained=model, tokenizer=job.prompts.tokenizer, batch_size=1)
    result = lm_eval.simple_evaluate(model=wrapped, tasks=[task], limit=job.options.lm_eval_limit, log_samples=False)
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
)
