"""Training of Generator, Extender and the final model: chat rows, then the stages `prepare` and `train`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.common.files import explain_disk, read_json, read_json_lines, write_atomic, write_json
from lengthen.common.manifest import StageContext
from lengthen.common.seeds import derive_seed, named_random
from lengthen.recipe.stages.self_lengthen import RoleTraining
from lengthen.selflengthen.checks import Verdict
from lengthen.selflengthen.extend import damaged
from lengthen.selflengthen.store import Key
from lengthen.selflengthen.work import Work, user


def chat_row(
    name: str, prompt: str, text: str, source: str, meta: dict[str, Any], system: str | None = None
) -> dict[str, Any]:
    """A row of chat.jsonl; loss falls on the assistant's turn alone. system: the message that the model is asked with,
    so that it is trained as it is used."""
    messages = [*user(prompt, system), {"role": "assistant", "content": text}]
    return {"id": name, "messages": messages, "source": source, "meta": meta}


def role_rows(work: Work, iteration: int, instructions: dict[str, tuple[str, str]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of both roles from the kept extensions of a macro-iteration.

    Generator: instruction -> extended text. Extender: the extend prompt with the damaged first response -> extended
    text, so that the small steps of all rounds become one.
    """
    rows: dict[str, list[dict[str, Any]]] = {"generator": [], "extender": []}
    for outcome in work.store.outcomes(iteration, "extension", kept=True):
        item, number = outcome.item.rsplit("~", 1)
        language, instruction = instructions[item]
        response = work.store.outcome(iteration, "response", item, int(number))
        if response is None or response.text is None or outcome.text is None:
            raise RuntimeError(f"an extension without its response: {outcome.item}")
        name = f"{iteration}-{outcome.item}-{outcome.sample}"
        meta = {"iteration": iteration, "language": language, "words": outcome.words, "from_words": response.words}
        rows["generator"].append(
            chat_row(name, instruction, outcome.text, "self-lengthen", meta, work.settings.respond.system)
        )
        seed = derive_seed(work.seed, "damage", iteration, outcome.item, outcome.sample)
        outline = damaged(response.text, work.settings.training.keep_line, seed)
        prompt = work.wordings[language].render("extend", {"instruction": instruction, "outline": outline})
        rows["extender"].append(chat_row(name, prompt, outcome.text, "self-lengthen", meta))
    for role, made in rows.items():
        rows[role] = fitting(work, iteration, role, made)
        work.store.set_rows(f"{role}-{iteration}", rows[role])
    return rows


def fitting(work: Work, iteration: int, role: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that fit training.row_length whole; the others are counted (cut, they would teach to stop mid-sentence)."""
    kept: list[dict[str, Any]] = []
    limit = work.settings.training.row_length
    for row in rows:
        tokens = sum(work.count_tokens(message["content"]) for message in row["messages"]) + 32
        key = Key(iteration, f"row-{role}", row["id"])
        verdict = Verdict("too_long_to_train", f"{tokens} tokens") if tokens > limit else Verdict("")
        if work.judge(key, verdict).accepted:
            kept.append(row)
    return kept


def with_replay(rows: list[dict[str, Any]], settings: RoleTraining, seed: int) -> list[dict[str, Any]]:
    """The rows and, of ordinary SFT data, as many that they are `replay_share` of all."""
    if not settings.replay or settings.replay_share == 0:
        return rows
    path = Path(settings.replay).expanduser()
    path = path / "chat.jsonl" if path.is_dir() else path
    pool = list(read_json_lines(path))
    if not pool:
        raise LengthenError(f"training.replay: {settings.replay} holds no rows.", fix="give a chat.jsonl with messages")
    bad = next((number for number, row in enumerate(pool, 1) if not row.get("messages")), None)
    if bad is not None:
        raise LengthenError(
            f"training.replay: row {bad} of {path} has no messages.",
            fix='give rows {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}',
        )
    wanted = round(len(rows) * settings.replay_share / (1 - settings.replay_share))
    random = named_random(seed, "replay")
    drawn = random.sample(pool, wanted) if wanted <= len(pool) else random.choices(pool, k=wanted)
    extra = [{**row, "id": f"replay-{i}", "source": "replay", "meta": {}} for i, row in enumerate(drawn)]
    return rows + [{key: row[key] for key in ("id", "messages", "source", "meta")} for row in extra]


def train_on(rows: list[dict[str, Any]], model: str, settings: RoleTraining, ctx: StageContext, folder: Path) -> Path:
    """Train `model` on chat rows through the stages `prepare` and `train`, inside `folder`.

    Returns `folder`, with `model/` (merged) and, with LoRA, `adapter/`: the sum of this training's adapter and those
    before it, against the starting model. A finished training is not done again; an interrupted one goes on.
    """
    if (folder / "model" / "config.json").exists() and (folder / "trained.json").exists():
        return folder
    chat = folder / "chat.jsonl"
    if not chat.exists():
        write_atomic(chat, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    prepare, train = _stages(model, settings, chat)
    seed = derive_seed(ctx.seed, folder.name)
    if settings.launch:
        done = _launched(prepare, train, settings, seed, folder)
    else:
        done = _here(prepare, train, replace(ctx, folder=folder, seed=seed, stage=f"{ctx.stage}/{folder.name}"))
    if settings.lora_rank:
        keep_adapter(folder, Path(model).parent / "adapter")
    write_json(folder / "trained.json", {"rows": len(rows), **done})
    return folder


def _stages(model: str, settings: RoleTraining, chat: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    lora = {"rank": settings.lora_rank, "alpha": settings.lora_alpha} if settings.lora_rank else None
    prepare = {
        "kind": "prepare", "model": model, "row_length": settings.row_length, "executor": {"workers": 1},
        "sources": [{"kind": "chat", "paths": [str(chat)], "packing": "none"}],
    }  # fmt: skip
    train = {
        "kind": "train", "model": model, "rows": ["@prepare"], "epochs": settings.epochs, "dtype": settings.dtype,
        "batch_rows": settings.rows_per_step, "lr": settings.learning_rate, "warmup": settings.warmup_ratio,
        "lr_floor": 0.0, "lora": lora, "keep_after": 1 if lora else 0,
    }  # fmt: skip
    return prepare, train


def _here(prepare: dict[str, Any], train: dict[str, Any], ctx: StageContext) -> dict[str, Any]:
    """Both stages in this process, in `ctx.folder`."""
    from lengthen.data.prepare import prepare as make_rows
    from lengthen.recipe.stages.prepare import PrepareStage
    from lengthen.recipe.stages.train import TrainStage
    from lengthen.train.run import train as run_training

    if not (ctx.folder / "rows" / "dataset.json").exists():
        make_rows(PrepareStage.model_validate(prepare), ctx)
    result = run_training(TrainStage.model_validate({**train, "rows": [str(ctx.folder)]}), ctx)
    return {"counts": result.counts, "figures": result.figures}


def _launched(
    prepare: dict[str, Any], train: dict[str, Any], settings: RoleTraining, seed: int, folder: Path
) -> dict[str, Any]:
    """Both stages as a recipe, run by the launcher on its ranks; model, metrics and checkpoints move to `folder`."""
    recipe, run = folder / "training.yaml", folder / ".run"
    stage = run / "stages" / "train"
    write_atomic(recipe, json.dumps({"name": folder.name, "seed": seed, "stages": [prepare, train]}, indent=1))
    command = [*settings.launch, "-m", "lengthen", "run", str(recipe), "--out", str(run)]
    code = subprocess.run(command).returncode
    if code:
        raise LengthenError(
            f"The training in {folder} ended with exit code {code}.",
            why="its messages stand above",
            fix=f"run the same command again, it goes on from the last checkpoint; by hand: {shlex.join(command)}",
        )
    manifest = read_json(stage / "manifest.json")
    take_over(stage, folder)
    return {"counts": manifest["counts"], "figures": manifest["figures"]}


def take_over(stage: Path, folder: Path) -> None:
    """Move what a launched training made into its folder, in place of what one inside this process had begun there."""
    with explain_disk(folder):
        for name in ("metrics.jsonl", "checkpoints", "model"):
            if (stage / name).exists():
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
                os.replace(stage / name, folder / name)


def keep_adapter(folder: Path, before: Path) -> None:
    """Take the adapter out of the last checkpoint and add the one that the training started from."""
    last = sorted((folder / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[-1]))[-1]
    part, target = folder / ".adapter.part", folder / "adapter"
    with explain_disk(target):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        if (before / "adapter_config.json").exists():
            stack_adapters([before, last], part)
        else:
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copyfile(last / name, part / name)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def stack_adapters(folders: list[Path], target: Path) -> None:
    """One LoRA adapter that equals several trained one on top of the other.

    W + s1 B1 A1 + s2 B2 A2 = W + s [B1 B2] [A1; A2] when all scales alpha/r are equal: ranks add up, nothing is lost.
    """
    import torch
    from safetensors.torch import load_file, save_file

    configs = [read_json(folder / "adapter_config.json") for folder in folders]
    scales = {config["lora_alpha"] / config["r"] for config in configs}
    if len(scales) > 1:
        raise LengthenError(
            f"Adapters of different scales (alpha / rank: {sorted(scales)}) cannot be served as one.",
            fix="keep training.lora_alpha / training.lora_rank the same in all macro-iterations",
        )
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    stacked = {
        name: torch.cat([one[name] for one in tensors], dim=0 if "lora_A" in name else 1).contiguous()
        for name in tensors[0]
    }
    save_file(stacked, target / "adapter_model.safetensors", metadata={"format": "pt"})
    rank, alpha = sum(c["r"] for c in configs), sum(c["lora_alpha"] for c in configs)
    base = configs[0]["base_model_name_or_path"]
    write_json(target / "adapter_config.json",
               {**configs[-1], "r": rank, "lora_alpha": alpha, "base_model_name_or_path": base})  # fmt: skip
