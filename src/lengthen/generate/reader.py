"""Running the model: reading prompts in chunks, one step of writing, the loss of each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lengthen.generate.attention import Beginning
from lengthen.generate.cache import Buffers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CHUNK = 4096
"""Tokens of a prompt that are read together: bounds the memory of the layers' inner states."""
LOGITS = 1 << 26
"""Most logits at once (256 MB in fp32) where every token's is wanted."""


class Reader:
    """A model with its tokenizer. Letters of shapes: B rows, T tokens, V vocabulary."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, chunk: int = CHUNK) -> None:
        self.model, self.tokenizer, self.chunk = model, tokenizer, chunk
        self.config = model.config.get_text_config()
        self.layers = int(self.config.num_hidden_layers)
        self.device = model.device
        self.ends = _end_tokens(model, tokenizer)
        # Layers with a window never see the shared beginning as a whole.
        kinds = set(getattr(self.config, "layer_types", None) or ["full_attention"])
        self.can_share = kinds == {"full_attention"} and not getattr(self.config, "sliding_window", None)

    def cache(self, capacity: int) -> Buffers:
        return Buffers(self.layers, capacity)

    def read(self, cache: Buffers, ids: Sequence[int]) -> torch.Tensor:
        """Read tokens after those of a one-row cache; logits_V of the last one. Never makes more logits than that."""
        logits = None
        for begin in range(0, len(ids), self.chunk):
            part_1T = torch.tensor([ids[begin : begin + self.chunk]], device=self.device)
            logits = self._forward(part_1T, _after(cache.length, part_1T), cache, keep=1)
        assert logits is not None
        return logits[0, -1]

    def read_rows(
        self, rows: Sequence[Sequence[int]], beginning: Beginning | None
    ) -> tuple[torch.Tensor, Buffers, list[int]]:
        """Read several short prompts side by side, padded at the left.

        Returns:
            logits_BV of the last tokens, the cache, and each row's padding.
        """
        longest = max(map(len, rows))
        pads = [longest - len(ids) for ids in rows]
        fill = self.tokenizer.pad_token_id or 0
        ids_BT = torch.tensor([[fill] * pad + list(ids) for pad, ids in zip(pads, rows)], device=self.device)
        pads_B = torch.tensor(pads, device=self.device)
        start = beginning.length if beginning is not None else 0
        positions_BT = (torch.arange(longest, device=self.device) - pads_B[:, None]).clamp(min=0) + start
        cache = self.cache(longest)
        extra = {"pad_lens": pads_B} if any(pads) else {}
        logits = self._forward(ids_BT, positions_BT, cache, keep=1, beginning=beginning, **extra)
        return logits[:, -1], cache, pads

    def step(
        self,
        cache: Buffers,
        tokens_B: torch.Tensor,
        positions_B: torch.Tensor,
        pads_B: torch.Tensor | None,
        beginning: Beginning | None,
    ) -> torch.Tensor:
        """One more token for each row: logits_BV."""
        extra: dict[str, Any] = {} if pads_B is None else {"pad_lens": pads_B.to(self.device)}
        tokens_B1, positions_B1 = tokens_B[:, None].to(self.device), positions_B[:, None].to(self.device)
        return self._forward(tokens_B1, positions_B1, cache, keep=1, beginning=beginning, **extra)[:, -1]

    def losses(self, ids: Sequence[int]) -> torch.Tensor:
        """-log p(token t | tokens before it) in nats for t = 1 .. len(ids) - 1, fp32 on the CPU."""
        chunk = max(1, min(self.chunk, LOGITS // int(self.config.vocab_size)))
        cache, found = self.cache(len(ids)), []
        for begin in range(0, len(ids) - 1, chunk):
            part_1T = torch.tensor([ids[begin : min(begin + chunk, len(ids) - 1)]], device=self.device)
            logits_TV = self._forward(part_1T, _after(begin, part_1T), cache, keep=0)[0].float()
            targets_T = torch.tensor(ids[begin + 1 : begin + 1 + part_1T.shape[1]], device=self.device)
            found.append(torch.nn.functional.cross_entropy(logits_TV, targets_T, reduction="none").cpu())
        return torch.cat(found) if found else torch.zeros(0)

    def free(self) -> None:
        """Give freed GPU memory back."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _forward(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        cache: Buffers,
        keep: int,
        beginning: Beginning | None = None,
        pad_lens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        extra: dict[str, Any] = {}
        if beginning is not None:
            extra["beginning"] = beginning
        if pad_lens is not None:
            extra["pad_lens"] = pad_lens
        return self.model(
            input_ids=ids_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
            **extra,
        ).logits


def _after(length: int, part_1T: torch.Tensor) -> torch.Tensor:
    return torch.arange(length, length + part_1T.shape[1], device=part_1T.device)[None]


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """Tokens that end an answer: the generation config's, and the tokenizer's own."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = set(named if isinstance(named, list) else [] if named is None else [named])
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    return frozenset(ends)
