"""Low-rank adapters through peft."""

from __future__ import annotations

from typing import Any

from lengthen.recipe.stages.train import LoraSettings


def add_adapters(model: Any, settings: LoraSettings) -> Any:
    """The model with adapters, everything else frozen (unless embeddings and norms are asked for)."""
    from peft import LoraConfig, get_peft_model

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
    return get_peft_model(model, config)


def merge_adapters(model: Any) -> Any:
    """The plain model, with adapters added to its weights; a model without adapters as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
