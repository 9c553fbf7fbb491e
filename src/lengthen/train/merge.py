"""The `merge` stage: weighted averages of weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lengthen.common.errors import LengthenError
from lengthen.common.files import explain_disk, read_json, write_json
from lengthen.common.manifest import StageContext, StageResult
from lengthen.models import resolve_model
from lengthen.recipe.stages.merge import MergeStage
from lengthen.train.checkpoints import checkpoints

# Keys that say nothing about how the weights are used.
_FREE = {"_name_or_path", "_model_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
_SHARD = 5 * 10**9  # bytes of weights per file, as save_pretrained


def merge(settings: MergeStage, ctx: StageContext) -> StageResult:
    """theta = sum of weight x theta_i over all parameters, added up in fp32; config, tokenizer and dtype come from one
    of the models. Writes `model/`.

    Tensors are read one at a time, so that memory holds one file of the result.

    Raises:
        LengthenError: models with different parameters or shapes; configs that differ while `config_from` is not set.
    """
    folders, template = _models(settings)
    weights = settings.weights or [1 / len(folders)] * len(folders)
    kept = _config_check(settings, folders, template)
    readers = [_Weights(folder) for folder in folders]
    names = _same_names(readers)
    target, part = ctx.folder / "model", ctx.folder / ".model.part"
    with explain_disk(target):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for file in template.iterdir():
            if file.is_file() and not file.name.startswith(("model", "pytorch_model", ".")) and _describes(file):
                shutil.copy(file, part / file.name)
        _write(part, names, readers, weights, _Weights(template))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part, target)
    total = sum(_numel(readers[0], name) for name in names)
    return StageResult(
        counts={"models": len(folders), "parameters": total},
        figures={"weights": weights, "models": [str(folder) for folder in folders], "config_from": str(template)},
        notes=kept,
    )


class _Weights:
    """Tensors of a folder by name, whatever files they lie in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file_of: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                self.file_of.update(dict.fromkeys(opened.keys(), file))
        if not self.file_of:
            raise LengthenError(f"{folder} holds no safetensors weights.", fix="save the model with save_pretrained")

    def get(self, name: str) -> torch.Tensor:
        with safe_open(self.file_of[name], framework="pt") as opened:
            return opened.get_tensor(name)

    def shape(self, name: str) -> list[int]:
        with safe_open(self.file_of[name], framework="pt") as opened:
            return opened.get_slice(name).get_shape()


def _numel(reader: _Weights, name: str) -> int:
    count = 1
    for n in reader.shape(name):
        count *= n
    return count


def _models(settings: MergeStage) -> tuple[list[Path], Path]:
    if settings.checkpoints is not None:
        store = Path(settings.checkpoints) / "checkpoints"
        found = checkpoints(store)[-settings.last :]
        if len(found) < settings.last:
            raise LengthenError(
                f"{store} holds {len(found)} whole checkpoints, {settings.last} are to be averaged.",
                fix=f"set keep: {settings.last} and keep_after: {settings.last} in that train stage, and run it again",
            )
        if any((folder / "adapter_config.json").exists() for folder in found):
            raise LengthenError(
                f"The checkpoints in {store} hold adapters (lora), which are not averaged.",
                why="the mean of two low-rank products is not the product of their mean matrices",
                fix='merge finished models, into which their adapters are merged: models: ["@one", "@two"]',
            )
        return found, resolve_model(settings.config_from) if settings.config_from else found[-1]
    folders = [resolve_model(name) for name in settings.models]
    return folders, resolve_model(settings.config_from) if settings.config_from else folders[0]


def _config_check(settings: MergeStage, folders: list[Path], template: Path) -> list[str]:
    """Differences between the configs, RoPE parameters among them: refused unless `config_from` decides."""
    configs = [_config(folder) for folder in folders]
    notes: list[str] = []
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        different = sorted(key for key in {*configs[0], *config} - _FREE if configs[0].get(key) != config.get(key))
        if different and settings.config_from is None:
            key = different[0]
            raise LengthenError(
                f"The configs of {folders[0]} and {folder} differ: {key} is {configs[0].get(key)} and {config.get(key)}"
                + (f" (and {len(different) - 1} more: {', '.join(different[1:6])})." if len(different) > 1 else "."),
                why="a merged model has one config; with the wrong RoPE parameters its long range is silently lost",
                fix="say which to keep: config_from: (the model with the longer positions)",
            )
        if different:
            notes.append(f"{', '.join(different)} differ in {folder}; kept as in {template}")
    return notes


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json")


def _same_names(readers: list[_Weights]) -> list[str]:
    first = readers[0]
    for other in readers[1:]:
        lonely = sorted(set(first.file_of) ^ set(other.file_of))
        if lonely:
            raise LengthenError(
                f"{first.folder} and {other.folder} have different parameters: {lonely[0]} is in one only.",
                fix="merge models of the same architecture; adapters are merged into their model first",
            )
        for name in first.file_of:
            if first.shape(name) != other.shape(name):
                raise LengthenError(
                    f"{name} has shape {first.shape(name)} in {first.folder} and {other.shape(name)} in {other.folder}."
                )
    return list(first.file_of)


def _write(part: Path, names: list[str], readers: list[_Weights], weights: list[float], like: _Weights) -> None:
    files: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    size = total = 0
    for name in names:
        sum_ = torch.zeros(readers[0].shape(name), dtype=torch.float32)
        for reader, weight in zip(readers, weights, strict=True):
            sum_.add_(reader.get(name).float(), alpha=weight)
        merged = sum_.to((like if name in like.file_of else readers[0]).get(name).dtype)
        nbytes = merged.numel() * merged.element_size()
        if size and size + nbytes > _SHARD:
            _flush(part, files, shard)
            shard, size = {}, 0
        shard[name] = merged
        size, total = size + nbytes, total + nbytes
    _flush(part, files, shard)
    if len(files) == 1:
        os.replace(part / _shard_name(1, None), part / "model.safetensors")
        return
    index: dict[str, str] = {}
    for number, inside in enumerate(files, 1):
        final = _shard_name(number, len(files))
        os.replace(part / _shard_name(number, None), part / final)
        index.update(dict.fromkeys(inside, final))
    write_json(part / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def _flush(part: Path, files: list[list[str]], shard: dict[str, torch.Tensor]) -> None:
    files.append(list(shard))
    save_file(shard, part / _shard_name(len(files), None), metadata={"format": "pt"})


def _shard_name(number: int, count: int | None) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors" if count else f"shard-{number:05d}.safetensors"


def _describes(file: Path) -> bool:
    """Config, tokenizer, chat template; not the state of a training."""
    if file.name in ("trainer_state.json", "sealed.json", "training_args.bin"):
        return False
    return file.suffix in (".json", ".jinja", ".txt", ".model")
