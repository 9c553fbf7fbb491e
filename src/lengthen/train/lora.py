"""Low-rank adapters through peft."""

from __future__ import annotations

from typing import Any

from lengthen.common.errors import LengthenError, nearest
from lengthen.recipe.stages.train import LoraSettings


def add_adapters(model: Any, settings: LoraSettings) -> Any:
    """The model with adapters, everything else frozen (unless embeddings and norms are asked for)."""
    from peft import LoraConfig, get_peft_model

    _check_targets(model, settings.targets)
    extra: list[str] | None = None
    if settings.train_embeddings:
        # LongLoRA (arXiv 2309.12307, section 3.3): without embeddings and norms, adapters do not reach long contexts.
        norms = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if "norm" in type(m).__name__.lower()}
        extra = ["embed_tokens", *sorted(norms)]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        modules_to_save=extra,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise LengthenError(f"lora.targets {settings.targets}: peft refuses them: {error}") from error


def _check_targets(model: Any, targets: list[str] | str) -> None:
    """peft passes over names that no layer has, as long as another name is there."""
    if isinstance(targets, str):
        return
    modules = dict(model.named_modules())
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            layers = {name.rsplit(".", 1)[-1] for name, module in modules.items() if hasattr(module, "weight")}
            raise LengthenError(
                f"lora.targets: no layer of the model is called '{target}'.", fix=nearest(target, layers)
            )


def merge_adapters(model: Any) -> Any:
    """The plain model, with adapters added to its weights; a model without adapters as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
