"""What is handed to a GPU's variable-length kernel and made of its answer, on a processor: a stand-in kernel that does
what the documented interfaces say (causality aligned at the end of each sequence), against the CPU core."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from lengthen.common.errors import LengthenError
from lengthen.train import attention, cores, cores_cuda
from lengthen.train.blockwise import Rule
from tests.train.test_attention import close, tensors

# shape: query heads, key/value heads, queries, keys.
CASES = {
    "one document": dict(shape=(4, 2, 50, 50)),
    "packed": dict(shape=(4, 2, 90, 90), docs=[7, 1, 60, 22]),
    "packed, equal heads": dict(shape=(4, 4, 40, 40), docs=[15, 25]),
    "window": dict(shape=(4, 2, 50, 50), window=9),
    "window in packed": dict(shape=(4, 2, 90, 90), docs=[7, 83], window=9),
    "window of one": dict(shape=(4, 2, 20, 20), window=1),
    "two rows": dict(shape=(4, 2, 30, 30), batch=2),
    "padded rows": dict(shape=(4, 2, 30, 30), batch=4, pads=[0, 11, 30, 29]),
    "padded rows, window": dict(shape=(4, 2, 30, 30), batch=2, pads=[3, 11], window=5),
    "chunked prefill": dict(shape=(4, 2, 20, 70)),
    "chunked prefill, window": dict(shape=(4, 2, 20, 70), window=16),
    "decoding padded rows": dict(shape=(4, 2, 1, 30), batch=3, pads=[0, 5, 29]),
    "prefill within padding": dict(shape=(4, 2, 10, 30), batch=2, pads=[25, 3]),
}  # fmt: skip
RULED = {
    "softcap": dict(shape=(4, 2, 60, 60), docs=[20, 40], softcap=3.0),
    "sinks": dict(shape=(4, 2, 60, 60), docs=[20, 40], sinks=True, window=9),
}


def kernel(q, k, v, cu_q, cu_k, scale, window, softcap=None, sinks=None):
    """(T, H, D) by sequences; `window`: (left, right) of the key that is aligned with a query, -1 without end."""
    parts = []
    for (q0, q1), (k0, k1) in zip(*(list(zip(cu.tolist(), cu.tolist()[1:])) for cu in (cu_q, cu_k)), strict=True):
        rep = q.shape[1] // k.shape[1]
        keys, values = (x[k0:k1].repeat_interleave(rep, 1).transpose(0, 1) for x in (k, v))
        score = q[q0:q1].transpose(0, 1) @ keys.mT * scale
        score = score if softcap is None else softcap * torch.tanh(score / softcap)
        distance = torch.arange(k1 - k0 - (q1 - q0), k1 - k0)[:, None] - torch.arange(k1 - k0)
        seen = torch.ones_like(distance, dtype=torch.bool)
        if window[0] >= 0:
            seen &= distance <= window[0]
        if window[1] >= 0:
            seen &= -distance <= window[1]
        score = score.masked_fill(~seen, -math.inf)
        if sinks is not None:
            score = torch.cat([score, sinks[:, None, None].expand(-1, q1 - q0, 1)], dim=-1)
        parts.append((score.softmax(-1)[..., : k1 - k0] @ values).transpose(0, 1))
    return torch.cat(parts)


def flash(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=None, s_aux=None,
):  # fmt: skip
    """As flash-attention 3; `causal` closes the right side."""
    lens_q, lens_k = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 and causal
    assert (max_seqlen_q, max_seqlen_k) == (int(lens_q.max()), int(lens_k.max()))
    window = (window_size[0], 0)
    return kernel(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, window, softcap, s_aux), None


def torch_kernel(*args, **kwargs):
    """As torch.nn.attention.varlen.varlen_attn of this torch."""
    from torch.nn.attention.varlen import varlen_attn

    given = inspect.signature(varlen_attn).bind(*args, **kwargs).arguments
    q, k, v = given["query"], given["key"], given["value"]
    assert given.get("enable_gqa", False) == (q.shape[1] != k.shape[1])
    return kernel(q, k, v, given["cu_seq_q"], given["cu_seq_k"], given["scale"], given["window_size"])


def made(shape, docs=None, window=None, softcap=None, sinks=False, batch=1, pads=None):
    q, k, v, grad = tensors(*shape, batch=batch)
    sinks_H = torch.linspace(-1, 2, shape[0], dtype=torch.float64).requires_grad_() if sinks else None
    segments = attention._segments(batch, shape[2], shape[3], docs, pads)
    return [x.requires_grad_() for x in (q, k, v)], sinks_H, segments, Rule(0.3, window, softcap), grad


def compare(case, core):
    """Output and gradients of `core` against the CPU core's."""
    inputs, sinks_H, segments, rule, grad = made(**case)
    wanted = inputs if sinks_H is None else [*inputs, sinks_H]
    found, expected = core(*inputs, segments, rule, sinks_H), cores.row_attention(*inputs, sinks_H, segments, rule)
    assert found.shape == expected.shape
    close(found, expected, 1e-10)
    for a, b in zip(*(torch.autograd.grad(out, wanted, grad) for out in (found, expected)), strict=True):
        close(a, b, 1e-10)


@pytest.mark.parametrize("name", [*CASES, *RULED])
def test_packed_for_flash_attention(name):
    def core(q, k, v, segments, rule, sinks_H):
        return cores_cuda._packed(q, k, v, segments, rule, flash, sinks_H)

    compare({**CASES, **RULED}[name], core)


@pytest.mark.parametrize("name", CASES)
def test_packed_for_torchs_kernel(name, monkeypatch):
    monkeypatch.setattr(cores_cuda, "torch_varlen", lambda: torch_kernel)

    def core(q, k, v, segments, rule, sinks_H):
        return cores_cuda._packed(q, k, v, segments, rule, None, sinks_H)

    compare(CASES[name], core)


@pytest.mark.parametrize("name", CASES)
def test_segment_by_segment(name):
    def core(q, k, v, segments, rule, sinks_H):
        return cores_cuda._by_segment(q, k, v, segments, rule)

    compare(CASES[name], core)


@pytest.mark.parametrize(("name", "words"), [("sinks", "uses sinks"), ("softcap", "uses softcap=3.0")])
def test_a_rule_that_no_kernel_has_is_refused(name, words):
    inputs, sinks_H, segments, rule, _ = made(**RULED[name])
    assert cores_cuda._lacking(lambda q, k, v: q, sinks_H, rule) and not cores_cuda._lacking(flash, sinks_H, rule)
    with pytest.raises(LengthenError, match=words):  # float64: no half-precision kernel is asked
        cores_cuda.row_attention(*inputs, sinks_H, segments, rule)
