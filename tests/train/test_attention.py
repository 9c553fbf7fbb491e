"""The attention cores against plain masked softmax attention in float64."""

from __future__ import annotations

import itertools
import math
import multiprocessing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lengthen.common.errors import LengthenError
from lengthen.train import attention, blockwise, cores, threads
from lengthen.train.attention import attend


def plain(q, k, v, *, docs=None, window=None, softcap=None, sinks=None, pads=None, scale=None):
    """Every score and every mask written out: (B, H, Q, D)."""
    queries, keys, rep = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(rep, 1), v.repeat_interleave(rep, 1)
    score = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        score = softcap * torch.tanh(score / softcap)
    position, column = torch.arange(keys - queries, keys)[:, None], torch.arange(keys)
    seen = (column <= position)[None, None]
    if window is not None:
        seen = seen & (column > position - window)
    if docs is not None and len(docs) > 1:
        owner = torch.repeat_interleave(torch.arange(len(docs)), torch.tensor(docs))
        seen = seen & (owner[:, None] == owner)
    if pads is not None:
        seen = seen & (column >= torch.tensor(pads)[:, None, None, None])
    score = score.masked_fill(~seen, -math.inf)
    if sinks is not None:
        score = torch.cat([score, sinks[None, :, None, None].expand(*score.shape[:3], 1)], dim=-1)
    return score.softmax(dim=-1).nan_to_num(0.0)[..., :keys] @ v


def tensors(heads, groups, queries, keys, dim=16, batch=1, size=1.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def make(h, n, factor=1.0):
        return torch.randn(batch, h, n, dim, generator=generator, dtype=torch.float64).mul(factor).to(dtype)

    return make(heads, queries, size), make(groups, keys, size), make(groups, keys), make(heads, queries)


def close(ours, theirs, tolerance):
    assert torch.isfinite(ours).all()
    assert float((ours.double() - theirs).abs().max()) <= tolerance * max(1.0, float(theirs.abs().max()))


def check(q, k, v, grad, *, sinks=None, tolerance=1e-5, **rule):
    """Output and every gradient of attend() in the given dtype against plain() in float64."""
    inputs = [q, k, v] + ([sinks] if sinks is not None else [])
    ours_in = [x.clone().requires_grad_() for x in inputs]
    true_in = [x.double().requires_grad_() for x in inputs]
    names = {"docs": "doc_lens", "pads": "pad_lens"}
    ours_rule = {names.get(name, name): value for name, value in rule.items()}
    ours_rule.setdefault("doc_lens", None)
    sink = dict(sinks_H=ours_in[3]) if sinks is not None else {}
    ours = attend(*ours_in[:3], **ours_rule, **sink)
    true = plain(*true_in[:3], **rule, sinks=true_in[3] if sinks is not None else None)
    close(ours, true, tolerance)
    ours_grads = torch.autograd.grad(ours, ours_in, grad.to(ours.dtype))
    for ours_grad, true_grad in zip(ours_grads, torch.autograd.grad(true, true_in, grad.double())):
        close(ours_grad, true_grad, tolerance)


CASES = {
    "one document": dict(shape=(4, 2, 700, 700)),
    "odd length": dict(shape=(6, 2, 517, 517)),
    "one token": dict(shape=(4, 2, 1, 1)),
    "no grouping": dict(shape=(3, 3, 260, 260)),
    "one key head": dict(shape=(5, 1, 333, 333)),
    "nine on three": dict(shape=(9, 3, 600, 600)),
    "packed": dict(shape=(4, 2, 700, 700), docs=[1, 99, 600]),
    "packed, ones at the edges": dict(shape=(4, 2, 300, 300), docs=[1, 1, 296, 1, 1]),
    "window": dict(shape=(4, 2, 900, 900), window=100),
    "window of one": dict(shape=(4, 2, 130, 130), window=1),
    "window wider than the row": dict(shape=(4, 2, 300, 300), window=5000),
    "window in packed": dict(shape=(4, 2, 700, 700), docs=[90, 610], window=70),
    "softcap": dict(shape=(4, 2, 400, 400), softcap=5.0),
    "softcap, window, packed": dict(shape=(4, 2, 700, 700), docs=[100, 600], window=90, softcap=3.0),
    "sinks": dict(shape=(4, 2, 400, 400), sinks=True),
    "sinks in packed": dict(shape=(4, 2, 400, 400), sinks=True, docs=[7, 393], window=50),
    "chunked prefill": dict(shape=(4, 2, 200, 900)),
    "chunked prefill, window": dict(shape=(4, 2, 200, 900), window=300),
    "decoding": dict(shape=(4, 2, 1, 900)),
    "few queries": dict(shape=(4, 2, 5, 900), window=64),
    "decoding with sinks": dict(shape=(4, 2, 1, 300), sinks=True),
    "left padding": dict(shape=(4, 2, 300, 300), batch=3, pads=[0, 7, 290]),
    "left padding, decoding": dict(shape=(4, 2, 1, 300), batch=3, pads=[0, 7, 290]),
    "left padding, chunk": dict(shape=(4, 2, 100, 300), batch=3, pads=[0, 7, 290]),
    "left padding, few queries": dict(shape=(4, 2, 6, 30), batch=2, pads=[0, 27]),
    "batch": dict(shape=(4, 2, 270, 270), batch=2),
    "given scale": dict(shape=(4, 2, 270, 270), scale=0.9),
}


@pytest.mark.parametrize("core", ["auto", "blockwise", "sdpa"])
@pytest.mark.parametrize("name", CASES)
def test_equals_plain_attention(name, core, monkeypatch):
    monkeypatch.setenv(cores.SETTING, core)
    case = dict(CASES[name])
    heads, groups, queries, keys = case.pop("shape")
    q, k, v, grad = tensors(heads, groups, queries, keys, batch=case.pop("batch", 1), dtype=torch.float32)
    sinks = torch.linspace(-1, 2, heads) if case.pop("sinks", False) else None
    check(q, k, v, grad, sinks=sinks, **case)


@pytest.mark.parametrize(
    "rule", [{}, {"window": 200}, {"sinks": torch.tensor([500.0, -500.0, 0.0, 20.0], dtype=torch.float64)}]
)
@pytest.mark.parametrize("size", [3.0, 12.0, 60.0])
def test_scores_of_any_size(rule, size):
    """Scores of 10^1 to 10^4: beyond float32's exponents, so the shift and the exact maximum must step in."""
    q, k, v, grad = tensors(4, 2, 400, 400, size=size)
    check(q, k, v, grad, tolerance=1e-9, **rule)


def test_keys_far_below_the_bound():
    """All true scores lie 10^3 below |q||k|: sums that start from the bound would be zero."""
    q, k, v, grad = tensors(2, 1, 300, 300)
    q, k = q * 0.01, k * 0.01
    q[..., 0], k[..., 0], k[..., 5, 0] = 60.0, -60.0, -59.0
    check(q, k, v, grad, tolerance=1e-9)


@given(
    lens=st.lists(st.integers(1, 90), min_size=1, max_size=9),
    grouped=st.booleans(),
    window=st.none() | st.integers(1, 99),
)
def test_any_documents(lens, grouped, window):
    q, k, v, grad = tensors(4, 2 if grouped else 4, sum(lens), sum(lens), dim=8, seed=sum(lens))
    check(q, k, v, grad, tolerance=1e-10, docs=lens, window=window)


@pytest.mark.parametrize("core", ["auto", "blockwise"])
def test_no_document_sees_another(core, monkeypatch):
    """Bit for bit: replacing one document by noise leaves every other document's output as it was."""
    monkeypatch.setenv(cores.SETTING, core)
    docs = [5, 300, 1, 64, 290]
    q, k, v, _ = tensors(4, 2, sum(docs), sum(docs), dtype=torch.float32)
    before = attend(q, k, v, doc_lens=docs)
    ends = list(itertools.accumulate(docs))
    for end, length in zip(ends, docs):
        changed = [x.clone() for x in (q, k, v)]
        for x in changed:
            x[:, :, end - length : end] = 1e4
        after = attend(*changed, doc_lens=docs)
        same = torch.ones(sum(docs), dtype=torch.bool)
        same[end - length : end] = False
        assert torch.equal(after[:, :, same], before[:, :, same])
        assert not torch.equal(after, before)


@pytest.mark.parametrize("docs", [[1500], [700, 800]])
def test_bfloat16_stays_near_torch(docs):
    """Errors against float64 at most 1.8 times those of torch's own kernel, which rounds once where we round twice."""
    q, k, v, grad = tensors(6, 2, 1500, 1500, dim=64, dtype=torch.bfloat16)
    true_in = [x.double().requires_grad_() for x in (q, k, v)]
    true = plain(*true_in, docs=docs)
    wanted = [true, *torch.autograd.grad(true, true_in, grad.double())]
    errors = {}
    for core in ("blockwise", "sdpa"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(cores.SETTING, core)
            inputs = [x.clone().requires_grad_() for x in (q, k, v)]
            ours = attend(*inputs, doc_lens=docs)
            got = [ours, *torch.autograd.grad(ours, inputs, grad)]
            errors[core] = [float((a.double() - b).pow(2).mean().sqrt()) for a, b in zip(got, wanted)]
    for ours, torchs in zip(errors["blockwise"], errors["sdpa"]):
        assert ours <= 1.8 * torchs


def test_same_bytes_every_time():
    q, k, v, grad = tensors(6, 2, 2000, 2000, dim=32, dtype=torch.bfloat16)
    results = []
    for _ in range(3):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*inputs, doc_lens=[1200, 800])
        results.append([out, *torch.autograd.grad(out, inputs, grad)])
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again))


def test_threads_agree_with_one_thread():
    q, k, v, grad = tensors(4, 2, 1100, 1100, dtype=torch.float64)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            inputs = [x.clone().requires_grad_() for x in (q, k, v)]
            out = attend(*inputs, doc_lens=[800, 300])
            results.append([out, *torch.autograd.grad(out, inputs, grad)])
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*results):
        close(three, one, 1e-12)


def test_workers_hand_errors_on():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            threads.run(lambda n: 1 // n, [1, 0, 2])
        assert threads.run(lambda n: (n, torch.is_grad_enabled()), [1, 2, 3]) == [(1, False), (2, False), (3, False)]
    finally:
        torch.set_num_threads(before)


def _in_child(queue):
    torch.set_num_threads(1)  # as every data-loader worker does: GNU OpenMP itself hangs in a fork with more
    q, k, v, _ = tensors(4, 2, 600, 600)
    queue.put(float((attend(q, k, v, doc_lens=None) - plain(q, k, v)).abs().max()))


def test_a_forked_child_does_not_wait_for_its_parents_threads():
    """A data-loader worker inherits the pool's object without its threads; waiting for those would never end."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        q, k, v, _ = tensors(4, 2, 600, 600)
        attend(q, k, v, doc_lens=None)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_in_child, args=(queue,))
        child.start()
        assert queue.get(timeout=60) < 1e-10
        child.join(10)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_autograd(mode):
    with mode():
        q, k, v, _ = tensors(4, 2, 700, 700)
        close(attend(q, k, v, doc_lens=[300, 400]), plain(q, k, v, docs=[300, 400]), 1e-12)


def test_heads_in_portions_give_the_same(monkeypatch):
    """Large models prepare their keys a few heads at a time."""
    monkeypatch.setattr(cores, "KEYS_AT_ONCE", 1)
    q, k, v, grad = tensors(8, 4, 400, 400)
    check(q, k, v, grad, tolerance=1e-11, docs=[300, 100])


def test_oneDNN_setting_is_left_as_found():
    before = torch.backends.mkldnn.matmul.fp32_precision
    q, k, v, _ = tensors(4, 2, 300, 300, dtype=torch.float32)
    attend(q, k, v, doc_lens=None)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert blockwise.onednn_float32_is_exact() in (True, False)


def test_core_is_chosen_by_rule(monkeypatch):
    long, short, chunk = (cores.Segment(0, 0, n, 0, k) for n, k in ((4096, 4096), (100, 100), (100, 4096)))
    plain_rule, windowed = blockwise.Rule(1.0), blockwise.Rule(1.0, window=50)
    monkeypatch.delenv(cores.SETTING, raising=False)
    monkeypatch.setattr(cores, "has_amx", lambda: False)
    assert [cores.choose_core(s, plain_rule, False) for s in (long, short, chunk)] == ["blockwise", "sdpa", "blockwise"]
    assert cores.choose_core(short, windowed, False) == cores.choose_core(short, plain_rule, True) == "blockwise"
    monkeypatch.setattr(cores, "has_amx", lambda: True)
    assert cores.choose_core(long, plain_rule, False) == "sdpa"
    monkeypatch.setenv(cores.SETTING, "fast")
    with pytest.raises(LengthenError, match="auto, blockwise, sdpa"):
        cores.choose_core(long, plain_rule, False)


REFUSED = {
    "add up to 9": dict(doc_lens=[4, 5]),
    "of every document": dict(doc_lens=[0, 10]),
    "batch of 2": dict(doc_lens=[10], batch=2),
    "cached ones": dict(doc_lens=[4, 6], keys=30),
    "every query is also a key": dict(doc_lens=None, keys=4),
    "together with padding": dict(doc_lens=[10], pad_lens=[3]),
    "one number of padding": dict(doc_lens=None, pad_lens=[3, 4]),
    "nothing to see": dict(doc_lens=None, window=0),
    "share 3 key/value heads": dict(doc_lens=None, groups=3),
    "per query head": dict(doc_lens=None, sinks_H=torch.zeros(3)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    case = dict(REFUSED[message])
    q, k, v, _ = tensors(4, case.pop("groups", 2), 10, case.pop("keys", 10), batch=case.pop("batch", 1))
    with pytest.raises(LengthenError, match=message):
        attend(q, k, v, **case)


class Halves:
    """A stand-in for two ranks in one process: both ranks' heads are computed, one after the other."""

    def __init__(self):
        self.calls = []

    def scatter_heads(self, x_BHSD):
        self.calls.append(tuple(x_BHSD.shape))
        return x_BHSD.contiguous()

    def gather_heads(self, x_BhSD):
        self.calls.append("gather")
        return x_BhSD.contiguous()


def test_exchange_surrounds_the_core():
    q, k, v, _ = tensors(4, 2, 50, 50)
    sinks = torch.linspace(0, 1, 4, dtype=torch.float64)
    module = torch.nn.Module()
    exchange = Halves()
    attention.set_exchange(exchange)
    try:
        out, _ = attention.transformers_attention(module, q, k, v, None, s_aux=sinks, doc_lens=torch.tensor([20, 30]))
    finally:
        attention.set_exchange(None)
    close(out.transpose(1, 2), plain(q, k, v, docs=[20, 30], sinks=sinks), 1e-12)
    assert exchange.calls == [(1, 4, 50, 1), (1, 4, 50, 16), (1, 2, 50, 16), (1, 2, 50, 16), "gather"]
