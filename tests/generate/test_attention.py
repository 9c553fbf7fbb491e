"""Attention over a shared beginning equals plain attention over everything; windows, caps and sinks included."""

from __future__ import annotations

import pytest
import torch

from lengthen.generate import Request
from lengthen.generate.attention import Rule, attend_rows, partial, partial_plain
from lengthen.generate.local import LocalEngine
from tests.conftest import make_tokenizer


def plain(q_BHQD, k_BGKD, v_BGKD, rule: Rule, pads_B, sinks_H=None):
    """Written out: one row, one head, one query after another."""
    B, H, Q, _ = q_BHQD.shape
    G, K = k_BGKD.shape[1:3]
    out = torch.zeros_like(q_BHQD)
    for b in range(B):
        for h in range(H):
            for i in range(Q):
                at = K - Q + i
                first = int(pads_B[b])
                if rule.window is not None:
                    first = max(first, at - rule.window + 1)
                if first > at:
                    continue
                keys, values = k_BGKD[b, h // (H // G), first : at + 1], v_BGKD[b, h // (H // G), first : at + 1]
                scores = keys @ q_BHQD[b, h, i] * rule.scale
                if rule.softcap is not None:
                    scores = rule.softcap * torch.tanh(scores / rule.softcap)
                if sinks_H is not None:
                    scores = torch.cat([scores, sinks_H[h : h + 1]])
                out[b, h, i] = torch.softmax(scores, 0)[: len(values)] @ values
    return out


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("extra", ["none", "softcap", "sinks"])
def test_a_shared_beginning_counts_as_if_it_stood_in_each_row(queries, extra):
    B, H, G, T, P, D = 3, 4, 2, 9, 17, 8
    q, k, v = draw(0, B, H, queries, D), draw(1, B, G, T, D), draw(2, B, G, T, D)
    first_k, first_v = draw(3, 1, G, P, D), draw(4, 1, G, P, D)
    pads = torch.tensor([0, 2, 3])
    rule = Rule(0.4, softcap=1.5 if extra == "softcap" else None)
    sinks = draw(5, H) if extra == "sinks" else None
    found = attend_rows(q, k, v, rule, pads, (first_k, first_v), sinks)
    for b in range(B):
        # The row's own tokens without its padding, right after the beginning.
        whole_k = torch.cat([first_k[0], k[b, :, pads[b] :]], 1)[None]
        whole_v = torch.cat([first_v[0], v[b, :, pads[b] :]], 1)[None]
        expected = plain(q[b : b + 1], whole_k, whole_v, rule, torch.zeros(1), sinks)
        torch.testing.assert_close(found[b : b + 1], expected, rtol=1e-5, atol=1e-5)


def test_padded_rows_with_a_window():
    q, k, v = draw(0, 2, 4, 6, 8), draw(1, 2, 2, 10, 8), draw(2, 2, 2, 10, 8)
    pads, rule = torch.tensor([0, 3]), Rule(0.4, window=4)
    torch.testing.assert_close(
        attend_rows(q, k, v, rule, pads), plain(q, k, v, rule, pads), rtol=1e-5, atol=1e-5
    )  # fmt: skip


def test_the_fast_partial_gives_what_plain_products_give():
    q, k, v = draw(0, 2, 2, 7, 8), draw(1, 2, 2, 300, 8), draw(2, 2, 2, 300, 8)
    mask = torch.rand(2, 1, 7, 300, generator=torch.Generator().manual_seed(3)) < 0.5
    for fast, slow in zip(partial(q, k, v, Rule(0.3), mask), partial_plain(q, k, v, Rule(0.3), mask)):
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "qwen3"])
def test_other_architectures_write_what_generate_writes(family, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer(tmp_path)
    name = "gemma3_text" if family == "gemma3" else family
    window = {"sliding_window": 16} if family != "qwen3" else {}
    config = AutoConfig.for_model(
        name, vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None, **window,
    )  # fmt: skip
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    texts = ["The boats come in. " * n for n in (1, 3, 9)] + ["Wet stones and crates of herring, " * 5]
    requests = [Request(f"q{i}", text=text, max_new_tokens=10) for i, text in enumerate(texts)]
    shared = [Request(f"s{i}", text="A keeper counts crates. " * 12 + t, max_new_tokens=6, share="x")
              for i, t in enumerate(texts[:3])]  # fmt: skip
    engine = LocalEngine(tmp_path, dtype="float32")
    found = {a.id: a.text for a in engine.generate([*requests, *shared])}
    for request in [*requests, *shared]:
        ids = tokenizer(request.text, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            out = model.generate(**ids, max_new_tokens=request.max_new_tokens, do_sample=False)
        assert found[request.id] == tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
