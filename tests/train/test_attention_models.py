"""The attention inside transformers' models: boundaries arrive, masks are honoured or refused."""

from __future__ import annotations

import pytest
import torch

from lengthen.common.errors import LengthenError
from lengthen.train.attention import register

SIZES = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": dict(head_dim=8),
    "mistral": dict(sliding_window=24),
    "gemma2": dict(head_dim=8, sliding_window=24, query_pre_attn_scalar=8),
    "gemma3_text": dict(head_dim=8, sliding_window=24, query_pre_attn_scalar=8),
    "phi3": dict(sliding_window=24),
    "olmo2": {},
    "olmo3": dict(sliding_window=24),
    "smollm3": dict(no_rope_layers=[1, 0, 1]),
    "gpt_oss": dict(head_dim=8, sliding_window=24, num_local_experts=2, num_experts_per_tok=2),
}


def model_of(family, attention="lengthen", **more):
    from transformers import AutoConfig, AutoModelForCausalLM

    register()
    register()  # any number of times
    config = AutoConfig.for_model(family, **SIZES, **FAMILIES.get(family, {}), **more)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():  # some families start with weights so small that a leak would not show
            parameter.mul_(4) if parameter.ndim > 1 else None
    return model.float()


def row(*lens):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 97, (1, sum(lens)), generator=generator)
    positions = torch.cat([torch.arange(n) for n in lens])[None]
    return ids, positions


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_row_equals_documents_alone(family, checkpointing):
    """Logits and gradients of a packed row equal those of eager attention on each document by itself."""
    lens = (40, 1, 61)
    ids, positions = row(*lens)
    ours, eager = model_of(family), model_of(family, "eager")
    eager.load_state_dict(ours.state_dict())
    ours.train()
    eager.train()
    if checkpointing:
        ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    logits = ours(input_ids=ids, position_ids=positions, doc_lens=torch.tensor(lens), use_cache=False).logits
    alone = torch.cat([eager(input_ids=part, use_cache=False).logits for part in ids.split(lens, dim=1)], dim=1)
    scale = float(alone.detach().abs().max())
    assert float((logits - alone).detach().abs().max()) < 2e-5 * max(1.0, scale)
    weight = torch.linspace(-1, 1, alone.numel()).view_as(alone)
    (logits * weight).sum().backward()
    (alone * weight).sum().backward()
    for (name, one), (_, other) in zip(ours.named_parameters(), eager.named_parameters()):
        if other.grad is not None:
            assert one.grad is not None, name
            assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=2e-5 * float(other.grad.abs().max()) + 1e-8), (
                name
            )


def test_jumping_positions_do_not_cut_the_row():
    """Without doc_lens a row is one document, whatever its positions (transformers would cut it at each jump)."""
    ids, _ = row(60)
    positions = torch.cat([torch.arange(30), torch.arange(200, 230)])[None]
    ours = model_of("llama").eval()
    with torch.no_grad():
        before = ours(input_ids=ids, position_ids=positions, use_cache=False).logits
        ids[0, 3] = (ids[0, 3] + 5) % 90 + 3
        after = ours(input_ids=ids, position_ids=positions, use_cache=False).logits
    assert float((after - before)[0, 30:].abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt_oss"])
def test_generation_in_a_left_padded_batch(family):
    """Tokens generated together, with padding and a cache (sliding windows included), are those of eager attention."""
    ours, eager = model_of(family).eval(), model_of(family, "eager").eval()
    eager.load_state_dict(ours.state_dict())
    ids, _ = row(45)
    batch = torch.zeros(2, 45, dtype=torch.long)
    batch[0], batch[1, 20:] = ids[0], ids[0, :25]
    mask = torch.ones(2, 45, dtype=torch.long)
    mask[1, :20] = 0
    settings = dict(max_new_tokens=12, do_sample=False, eos_token_id=None)
    together = ours.generate(input_ids=batch, attention_mask=mask, **settings)
    assert torch.equal(together, eager.generate(input_ids=batch, attention_mask=mask, **settings))
    alone = ours.generate(input_ids=ids[:, :25], attention_mask=torch.ones(1, 25, dtype=torch.long), **settings)
    assert torch.equal(together[1, 45:], alone[0, 25:])


def test_prefill_in_chunks_equals_one_prefill():
    ours = model_of("mistral").eval()
    ids, _ = row(120)
    with torch.no_grad():
        whole = ours(input_ids=ids).logits
        cache, parts = None, []
        for part in ids.split(50, dim=1):
            step = ours(input_ids=part, past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            parts.append(step.logits)
    assert float((torch.cat(parts, dim=1) - whole).abs().max()) < 1e-4


def test_pad_lens_equals_the_padding_mask():
    ours = model_of("llama").eval()
    ids, _ = row(30)
    mask = torch.ones(1, 30, dtype=torch.long)
    mask[0, :8] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        by_mask = ours(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        by_lens = ours(input_ids=ids, position_ids=positions, pad_lens=torch.tensor([8])).logits
        alone = ours(input_ids=ids[:, 8:]).logits
    assert torch.equal(by_mask, by_lens)
    assert float((by_mask[:, 8:] - alone).abs().max()) < 1e-5


def test_masks_that_would_be_ignored_are_refused():
    ours = model_of("llama").eval()
    ids, _ = row(20)
    right = torch.ones(1, 20, dtype=torch.long)
    right[0, 15:] = 0
    with pytest.raises(LengthenError, match="left padding"):
        ours(input_ids=ids, attention_mask=right)
    with pytest.raises(LengthenError, match="attention mask of shape"):
        ours(input_ids=ids, attention_mask=torch.ones(1, 1, 20, 20).tril().bool())
    left = right.flip(-1)
    with pytest.raises(LengthenError, match="doc_lens together with a padding mask"):
        ours(input_ids=ids, attention_mask=left, doc_lens=torch.tensor([10, 10]))
    with pytest.raises(LengthenError, match="contradict"):
        ours(input_ids=ids, attention_mask=left, pad_lens=torch.tensor([4]))
    logits = ours(input_ids=ids, attention_mask=torch.ones_like(right), doc_lens=torch.tensor([10, 10])).logits
    assert torch.equal(logits, ours(input_ids=ids, doc_lens=torch.tensor([10, 10])).logits)


def test_other_rules_are_refused():
    ids, _ = row(20)
    dropping = model_of("llama", attention_dropout=0.1).train()
    with pytest.raises(LengthenError, match="attention_dropout"):
        dropping(input_ids=ids)
    dropping.eval()(input_ids=ids)
    both_ways = model_of("llama")
    for layer in both_ways.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(LengthenError, match="both directions"):
        both_ways(input_ids=ids)
    with pytest.raises(LengthenError, match="cu_seq_lens_q"):
        model_of("llama")(input_ids=ids, cu_seq_lens_q=torch.tensor([0, 20]))
    with pytest.raises(LengthenError, match="static cache"):
        model_of("llama").generate(input_ids=ids, cache_implementation="static", max_new_tokens=3)


def test_mask_rules_we_do_not_know_are_refused():
    from transformers.masking_utils import chunked_causal_mask_function, sliding_window_causal_mask_function

    from lengthen.train.attention import transformers_mask

    assert transformers_mask(1, 8, 8, mask_function=sliding_window_causal_mask_function(4)) is None
    chunked = chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long))
    with pytest.raises(LengthenError, match="chunked_overlay"):
        transformers_mask(1, 8, 8, mask_function=chunked)
