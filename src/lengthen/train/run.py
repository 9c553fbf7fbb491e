"""The `train` stage: a model and rows in, a plain Hugging Face folder out."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lengthen.common.dist import export_launcher_variables, is_main, rank, world_size
from lengthen.common.errors import LengthenError, MissingExtra, nearest
from lengthen.common.files import explain_disk, read_json, read_json_lines, sha256_file, write_atomic, write_json
from lengthen.common.manifest import StageContext, StageResult
from lengthen.models import load_tokenizer, pick_dtype, resolve_model
from lengthen.recipe.base import Derived, size_text
from lengthen.recipe.stages.train import PositionSettings, TrainStage, batch_and_steps, recomputes, refuse_long_warmup
from lengthen.train import fsdp, gates
from lengthen.train.attention import set_exchange
from lengthen.train.checkpoints import checkpoints, last_checkpoint, prune, step_of
from lengthen.train.collate import Collator
from lengthen.train.load import load_model
from lengthen.train.lora import add_adapters, merge_adapters
from lengthen.train.machine import layer_parameters, measured_peak, raise_malloc_thresholds, training_flops
from lengthen.train.mesh import check_sequence_parallel, open_mesh, ranks_of
from lengthen.train.probe import probe_training
from lengthen.train.rope import Extension, check_targets, extension_for
from lengthen.train.rows import TrainingRows, check_rows, check_tokenizer, open_training_rows, row_of
from lengthen.train.sampler import StepPlan
from lengthen.train.trainer import Housekeeping, LongTrainer, Optimization


def train(settings: TrainStage, ctx: StageContext) -> StageResult:
    """Train `settings.model` on `settings.rows`. Goes on from its last whole checkpoint when it was interrupted.

    Writes `model/`, `metrics.jsonl` and, while it runs, `checkpoints/` into `ctx.folder`.

    Raises:
        LengthenError: settings that cannot hold for this model and these rows, before any compute; a loss that is no
            number, a checkpoint that cannot be written, with the last good checkpoint named.
    """
    passed = _passed(settings)
    if passed:
        return _pass_on(settings, ctx, passed)
    _refuse_what_is_missing(settings)
    place = ranks_of(settings.sequence_parallel, rank(), world_size())
    raise_malloc_thresholds()
    _quiet_libraries()
    export_launcher_variables()
    rows = open_training_rows(settings.rows)
    folder = resolve_model(settings.model)
    extension = extension_for(folder, settings.length, settings.rope)
    derived = list(extension.derived)
    settings = _with_targets(settings, derived)
    check_targets(folder, extension, settings.positions.targets)
    dtype = _chosen(settings, ctx, derived)
    mean_row = max(1, round(float(rows.lengths.mean())))
    decided = batch_and_steps(settings, mean_row, len(rows.data), place.dp_size * settings.micro_batch)
    refuse_long_warmup(settings, decided.steps)
    derived += decided.derived
    plan = StepPlan(
        rows.costs.tolist(), rows.lengths.tolist(), batch_rows=decided.batch_rows, micro_rows=settings.micro_batch,
        dp_size=place.dp_size, batching=settings.batching, seed=ctx.seed_for("order"),
    )  # fmt: skip
    keeping = _keeping(settings, ctx, rows, decided.batch_rows, decided.steps, dtype, folder, derived)
    resume = last_checkpoint(keeping.store, keeping.identity)
    tokenizer = load_tokenizer(folder)
    check_tokenizer(settings.rows, tokenizer)
    build = partial(_build, settings, ctx, folder, extension, dtype)
    model, keeping, looked = _model(settings, rows, keeping, build, derived)
    collator = Collator(
        settings.positions, rule=settings.loss, seed=ctx.seed_for("positions"), pad_to=settings.sequence_parallel
    )
    optimization = _optimization(settings, decided.steps)
    mesh = open_mesh(settings.sequence_parallel)
    trainer = LongTrainer(model, tokenizer, rows.data, plan, collator, optimization, keeping, mesh.ranks)
    # Cut rows are probed as the user's settings place them; a probe of one row costs some small forward passes.
    shown = [row_of(rows.data, index) for index in range(min(1, len(rows.data)))]
    trainer.on_ready = lambda ready: probe_training(ready, collator, shown, mesh)
    set_exchange(mesh.exchange)
    try:
        _run(trainer, settings, ctx, decided.steps, resume)
    finally:
        set_exchange(None)
    _save_model(trainer, ctx.folder, build)
    if is_main():
        prune(keeping.store, settings.keep_after)
    return _result(ctx.folder, decided.steps, rows, derived, looked)


def _build(settings: TrainStage, ctx: StageContext, folder: Path, extension: Extension, dtype: str) -> Any:
    """The start model with its longer positions and its adapters."""
    model = load_model(str(folder), dtype=dtype, rope=extension.parameters, window=extension.window)
    if settings.lora is not None:
        torch.manual_seed(ctx.seed_for("adapters"))
        model = add_adapters(model, settings.lora)
    return model


def _model(
    settings: TrainStage, rows: TrainingRows, keeping: Housekeeping, build: Callable[[], Any], derived: list[Derived]
) -> tuple[Any, Housekeeping, str]:
    """The model, checked against the rows and the ranks, and what was looked at."""
    model = build()
    text = model.config.get_text_config()
    dropout = settings.lora.dropout if settings.lora is not None else 0.0
    check_sequence_parallel(model.config, settings.sequence_parallel, length=settings.length, dropout=dropout)
    whole_rows = settings.positions.type == "continuous"
    # transformers keeps the original window of a `dynamic` model in its config; it reaches to `length` all the same.
    reach = max(text.max_position_embeddings, settings.length or 0)
    looked = check_rows(rows, positions=reach, vocabulary=text.vocab_size, whole_rows=whole_rows)
    looked += _about_units(settings, rows)
    coefficient = getattr(text, "router_aux_loss_coef", 0.0) if hasattr(text, "output_router_logits") else 0.0
    if coefficient:
        why = "the model's config: the experts' balancing loss is added to the loss (0 there turns it off)"
        derived.append(Derived("router_aux_loss_coef", coefficient, why))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peak = measured_peak(model.dtype, device) if is_main() else None
    return model, replace(keeping, flops=training_flops(text, layer_parameters(model)), peak=peak), looked


def _run(trainer: LongTrainer, settings: TrainStage, ctx: StageContext, steps: int, resume: Path | None) -> None:
    done = step_of(resume) if resume is not None else 0
    if is_main():
        _cut_metrics(ctx.folder / "metrics.jsonl", done)
    if settings.optimizer_from is not None and resume is None:
        trainer.carry_optimizer(_optimizer_file(settings.optimizer_from))
    with ctx.progress("training", steps, "steps", done) as bar:
        trainer.on_step = lambda line: bar.advance(
            1, f"loss {line['loss']:.4f}  {line['tokens_per_second']:,.0f} tokens/s"
        )
        trainer.train(resume_from_checkpoint=str(resume) if resume is not None else None)


def _refuse_what_is_missing(settings: TrainStage) -> None:
    """Devices, libraries and trackers, before any compute."""
    for key in ("activation_offload", "liger"):
        if getattr(settings, key) and not torch.cuda.is_available():
            raise LengthenError(f"{key} needs a GPU, and this machine has none.", fix=f"drop {key}")
    if settings.liger and importlib.util.find_spec("liger_kernel") is None:
        raise MissingExtra.of("liger", "gpu")
    if settings.report_to:
        from transformers.integrations.integration_utils import (
            INTEGRATION_TO_CALLBACK,
            get_available_reporting_integrations,
        )

        for name in settings.report_to:
            if name not in INTEGRATION_TO_CALLBACK:
                raise LengthenError(f"report_to: '{name}' is no tracker.", fix=nearest(name, INTEGRATION_TO_CALLBACK))
            if name not in get_available_reporting_integrations():
                raise MissingExtra(f"report_to: {name} is not installed.", fix=f"pip install {name}, or drop it")


def _quiet_libraries() -> None:
    """Their bars for loading and saving would run through ours."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def _passed(settings: TrainStage) -> list[str]:
    """Sentences of the `until` gates when all of them hold, else nothing. A `requires` gate that fails stops."""
    for gate in settings.requires:
        holds, sentence = gates.check(gate)
        if not holds:
            raise LengthenError(
                f"Stage '{settings.name}' does not start: its gate is not reached. {sentence}",
                fix="train the stage before it for longer, or lower the gate (requires)",
            )
    found = [gates.check(gate) for gate in settings.until]
    return [sentence for _, sentence in found] if all(holds for holds, _ in found) else []


def _about_units(settings: TrainStage, rows: TrainingRows) -> str:
    """What positions with gaps do with the rows' own units, where there are any."""
    positions = settings.positions
    count, own = len(rows.units), int(np.count_nonzero(rows.units))
    if positions.type not in ("pose", "skip") or not own:
        return ""
    if own == count and positions.unit != type(positions).model_fields["unit"].default:
        raise LengthenError(
            f"positions.unit = {list(positions.unit)} has no effect: all rows carry their own units (`unit_lens`).",
            why="conversations are cut at sentences, and between no answer and what is asked",
            fix="drop positions.unit",
        )
    if rows.whole == count:
        raise LengthenError(
            f"positions.type {positions.type} has no effect: each document of the {count:,} rows is one unit.",
            why="gaps lie between sentences of what is read, and these conversations have only questions and answers",
            fix="use positions.type plain, or rows with texts to read",
        )
    said = f"; {own:,} of {count:,} rows carry their own units"
    return said + (f", {rows.whole:,} of them one a document, so that their positions stay plain" if rows.whole else "")


def _pass_on(settings: TrainStage, ctx: StageContext, sentences: list[str]) -> StageResult:
    """The gates hold already: the model goes on as it is."""
    target, part = ctx.folder / "model", ctx.folder / ".model.part"
    if is_main() and not target.exists():
        with explain_disk(target):
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(resolve_model(settings.model), part)
            os.replace(part, target)
    return StageResult(counts={"steps": 0}, notes=[f"not trained, its gates hold already: {'; '.join(sentences)}"])


def _with_targets(settings: TrainStage, derived: list[Derived]) -> TrainStage:
    positions = settings.positions
    if positions.type in ("pose", "skip") and not positions.targets and settings.length:
        derived.append(Derived("positions.targets", [settings.length], "the stage's length"))
        positions = PositionSettings(type=positions.type, targets=[settings.length], unit=positions.unit)
    return settings.model_copy(update={"positions": positions})


def _chosen(settings: TrainStage, ctx: StageContext, derived: list[Derived]) -> str:
    """The number format. `auto` is measured once by the first rank and kept beside the checkpoints: a second
    measurement on a busy machine might come out otherwise, and a resumed run or another rank must not differ."""
    if settings.dtype != "auto":
        return settings.dtype
    note = ctx.folder / ".dtype.json"
    if is_main() and not note.exists():
        write_json(note, dict(zip(("dtype", "why"), pick_dtype("auto"))))
    deadline = time.monotonic() + 600
    while not note.exists():
        if time.monotonic() > deadline:
            raise LengthenError(
                f"The first rank has not written {note} within ten minutes.",
                fix="look at its output; all ranks must see the same run folder",
            )
        time.sleep(0.2)
    chosen = read_json(note)
    why = chosen["why"] + (", with fp32 master weights" if chosen["dtype"] != "float32" else "")
    derived.append(Derived("dtype", chosen["dtype"], why))
    return chosen["dtype"]


def _optimization(settings: TrainStage, steps: int) -> Optimization:
    return Optimization(
        steps=steps, lr=settings.lr, schedule=settings.schedule, lr_floor=settings.lr_floor, warmup=settings.warmup,
        betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay, grad_clip=settings.grad_clip,
    )  # fmt: skip


def _keeping(
    settings: TrainStage, ctx: StageContext, rows: TrainingRows, batch_rows: int, steps: int, dtype: str,
    folder: Path, derived: list[Derived],
) -> Housekeeping:  # fmt: skip
    every = settings.save_every
    if every is None:
        every = min(125, max(1, -(-steps // 10)))
        derived.append(Derived("save_every", every, "a tenth of the run, at most ProLong's 125 steps"))
    recompute = recomputes(settings, rows.longest)
    if settings.checkpointing == "auto":
        line, sign = size_text(rows.longest * settings.micro_batch), "more" if recompute else "no more"
        derived.append(Derived("checkpointing", recompute, f"{line} tokens at once, {sign} than 4K"))
    sharding, why = fsdp.choose(settings.sharding, world_size())
    if settings.sharding != sharding:
        derived.append(Derived("sharding", sharding, why))
    identity = {
        **{key: value for key, value in asdict(_optimization(settings, steps)).items()},
        "betas": list(settings.betas),
        "batch_rows": batch_rows, "micro_batch": settings.micro_batch, "batching": settings.batching,
        "loss": settings.loss, "dtype": dtype, "seed": ctx.seed, "rows": rows.sha256,
        "row_content": rows.content_sha256,
        "positions": settings.positions.model_dump(mode="json"), "rope": settings.rope.model_dump(mode="json"),
        "length": settings.length, "lora": settings.lora.model_dump(mode="json") if settings.lora else None,
        "model": sha256_file(folder / "config.json"),
    }  # fmt: skip
    return Housekeeping(
        folder=ctx.folder, save_every=every, keep=settings.keep, identity=identity,
        report_to=tuple(settings.report_to), workers=settings.workers, seed=ctx.seed, checkpointing=recompute,
        activation_offload=settings.activation_offload, liger=settings.liger, sharding=sharding,
    )  # fmt: skip


def _optimizer_file(stage: str) -> Path:
    found = checkpoints(Path(stage) / "checkpoints")
    file = found[-1] / "optimizer.pt" if found else Path(stage) / "optimizer.pt"
    if not file.exists():
        raise LengthenError(
            f"optimizer_from: {stage} holds no optimizer state.",
            why="checkpoints are deleted at the end of a training unless they are asked for",
            fix="set keep_after: 1 in that stage, and run it again",
        )
    return file


def _cut_metrics(path: Path, done: int) -> None:
    """Forget lines after the checkpoint that the run goes on from: those steps are done again."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if _step_in(line) <= done]
        write_atomic(path, "".join(line + "\n" for line in kept))


def _step_in(line: str) -> float:
    import json

    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")


def _save_model(trainer: LongTrainer, folder: Path, build: Callable[[], Any]) -> None:
    """model/ as a plain Hugging Face folder: weights, config with its RoPE parameters, tokenizer, chat template,
    generation config."""
    trained = trainer.accelerator.unwrap_model(trainer.model)
    if fsdp.is_sharded(trained):
        trained = fsdp.whole_model(trained, build)
    if trainer.is_world_process_zero():
        target, part = folder / "model", folder / ".model.part"
        with explain_disk(target):
            shutil.rmtree(part, ignore_errors=True)
            model = merge_adapters(trained)
            # Trainers switch the cache off for training; a folder saved so would generate without one.
            model.config.get_text_config().use_cache = True
            model.save_pretrained(part)
            trainer.processing_class.save_pretrained(part)  # type: ignore[union-attr]
            shutil.rmtree(target, ignore_errors=True)
            os.replace(part, target)
    trainer.accelerator.wait_for_everyone()


def _result(folder: Path, steps: int, rows: TrainingRows, derived: list[Derived], looked: str) -> StageResult:
    lines: list[dict[str, Any]] = list(read_json_lines(folder / "metrics.jsonl"))
    seconds = sum(line["seconds"] for line in lines)
    tokens = sum(line["tokens"] for line in lines)
    last = [line["loss"] for line in lines[-10:]]
    config = read_json(folder / "model" / "config.json") if (folder / "model").exists() else {}
    return StageResult(
        counts={
            "steps": steps,
            "rows": len(rows.data),
            "tokens": tokens,
            "trained_tokens": sum(line["trained_tokens"] for line in lines),
            "padding": sum(line["padding"] for line in lines),
        },
        figures={
            "loss_first": lines[0]["loss"] if lines else None,
            "loss_last": sum(last) / len(last) if last else None,
            "minutes": round(seconds / 60, 2),
            "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
            "rope_parameters": config.get("rope_parameters"),
            "max_position_embeddings": config.get("max_position_embeddings"),
        },
        derived={d.key: {"value": d.value, "reason": d.reason} for d in derived},
        notes=[looked],
    )
