"""The in-process engine writes what plain `generate` writes, however requests are batched or share beginnings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lengthen.generate import Request, open_engine
from lengthen.generate.local import LocalEngine
from tests.conftest import make_model

_WORDS = "harbour town lamps boats carts crates herring crab bundles rope keeper counts stones ninth"
WORDS = _WORDS.split()


def prose(seed: int, words: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (words,), generator=generator).tolist()
    return " ".join(WORDS[i] for i in picks) + "."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"), window=4096)


@pytest.fixture(scope="module")
def engine(folder):
    return LocalEngine(folder, dtype="float32")


@pytest.fixture(scope="module")
def plain(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def write(request: Request, **sampling) -> str:
        text = request.text or tokenizer.apply_chat_template(
            list(request.messages), tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text + request.prefix, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            out = model.generate(
                **ids, max_new_tokens=request.max_new_tokens, do_sample=False, pad_token_id=0,
                repetition_penalty=request.repetition_penalty, **sampling,
            )  # fmt: skip
        return tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)

    return write


def ask(i: int, words: int, **more) -> Request:
    return Request(f"q{i}", messages=({"role": "user", "content": prose(i, words)},), max_new_tokens=12, **more)


def answers(engine, requests) -> dict[str, str]:
    found = list(engine.generate(requests))
    assert all(answer.error is None for answer in found)
    texts = {answer.id: answer.text for answer in found}
    assert len(texts) == len(found) == len(requests)
    return texts


def test_a_batch_of_different_lengths_writes_what_generate_writes(engine, plain):
    requests = [
        replace(ask(i, words), max_new_tokens=5 + 7 * (i % 3)) for i, words in enumerate([3, 40, 9, 120, 1, 77])
    ]
    found = answers(engine, requests)
    assert found == {r.id: plain(r) for r in requests}
    assert len(set(found.values())) > 1


def test_places_are_filled_anew_while_others_go_on(folder, plain):
    engine = LocalEngine(folder, dtype="float32", batch_size=3)
    requests = [replace(ask(i, 5 + 3 * i), max_new_tokens=3 + 5 * (i % 4)) for i in range(11)]
    assert answers(engine, requests) == {r.id: plain(r) for r in requests}


def test_long_prompts_are_read_in_chunks(folder, plain):
    engine = LocalEngine(folder, dtype="float32", chunk=100)
    requests = [ask(1, 700), ask(2, 20), ask(3, 900)]
    assert answers(engine, requests) == {r.id: plain(r) for r in requests}


def test_questions_over_one_document_share_its_beginning(engine, plain):
    document = prose(7, 500)
    requests = [
        Request(f"q{i}", text=f"{document} {prose(i, 3 + i)}", max_new_tokens=4 + i, share="doc") for i in range(9)
    ]
    read = counted(engine)
    assert answers(engine, requests) == {r.id: plain(r) for r in requests}
    assert read() < 1.5 * engine.count_tokens(document)


def test_prompts_that_part_at_different_places_read_each_branch_once(engine, plain):
    parts = [prose(100 + i, 300) for i in range(4)]
    requests = []
    for i in range(5):
        text = " ".join([*parts[:i], prose(i, 6), *parts[i:]])
        requests.append(Request(f"q{i}", text=text, max_new_tokens=8, share="map"))
    read = counted(engine)
    assert answers(engine, requests) == {r.id: plain(r) for r in requests}
    alone = sum(engine.count_tokens(r.text) for r in requests)
    assert read() < 0.8 * alone


def counted(engine):
    """Tokens that the model is run on from now on."""
    seen = [0]
    reader, forward = engine.reader, engine.reader.model.forward

    def count(*args, **kwargs):
        seen[0] += kwargs["input_ids"].numel()
        return forward(*args, **kwargs)

    reader.model.forward = count

    def stop() -> int:
        reader.model.forward = forward
        return seen[0]

    return stop


def test_the_prefix_is_read_and_not_returned(engine, plain):
    request = replace(ask(3, 20), prefix="The number of the ninth crate is")
    (answer,) = engine.generate([request])
    assert answer.text == plain(request)
    assert engine.render(request).endswith("<|im_start|>assistant\nThe number of the ninth crate is")
    assert answer.prompt_tokens == engine.count_tokens(engine.render(request))


def test_sampled_answers_depend_on_the_seed_and_not_on_the_batch(engine):
    requests = [replace(ask(i, 10 + i), temperature=1.0, top_p=0.9, top_k=50, seed=5) for i in range(6)]
    together = answers(engine, requests)
    alone = {r.id: next(iter(engine.generate([r]))).text for r in requests}
    assert together == alone
    other = answers(engine, [replace(r, seed=6) for r in requests])
    assert other != together


def test_repetition_penalty_is_that_of_transformers(engine, plain):
    request = replace(ask(5, 30), repetition_penalty=1.3, max_new_tokens=24)
    (answer,) = engine.generate([request])
    assert answer.text == plain(request)


def test_stop_strings_end_an_answer_before_them(engine, plain):
    whole = plain(replace(ask(1, 40), max_new_tokens=40))
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    (answer,) = engine.generate([replace(ask(1, 40), max_new_tokens=40, stop=("never there", stop))])
    assert answer.finish_reason == "stop"
    assert answer.text == whole[: whole.index(stop)]
    assert answer.new_tokens < 40


def test_the_end_token_ends_an_answer(tmp_path, plain):
    # The token that the model would write third becomes its end token.
    folder = make_model(tmp_path, window=4096)
    (whole,) = LocalEngine(folder, dtype="float32").generate([ask(2, 30)])
    assert whole.finish_reason == "length" and whole.new_tokens == 12
    engine = LocalEngine(folder, dtype="float32")
    ids = engine.tokenizer.encode(whole.text, add_special_tokens=False)
    engine.reader.ends = frozenset({ids[2]})
    (answer,) = engine.generate([ask(2, 30)])
    assert answer.finish_reason == "stop"
    assert answer.new_tokens == ids.index(ids[2])


def test_loss_by_token_is_the_models_loss(folder, engine):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = engine.tokenizer(prose(1, 300))["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    for chunk in (4096, 64):
        engine.reader.chunk = chunk
        torch.testing.assert_close(engine.loss_by_token(ids), expected, rtol=1e-4, atol=1e-4)
    engine.reader.chunk = 4096


def test_out_of_memory_makes_the_batch_smaller_and_loses_nothing(folder, plain):
    engine = LocalEngine(folder, dtype="float32", batch_size=8)
    forward = engine.reader.model.forward

    def scarce(*args, **kwargs):
        if kwargs["input_ids"].shape[0] > 2:
            # What a real allocation beyond the machine's memory raises.
            torch.empty(1 << 60, dtype=torch.float32)
        return forward(*args, **kwargs)

    engine.reader.model.forward = scarce
    requests = [ask(i, 6 + i) for i in range(8)]
    assert answers(engine, requests) == {r.id: plain(r) for r in requests}


def test_a_prompt_that_does_not_fit_alone_is_an_error_and_the_others_go_on(folder):
    engine = LocalEngine(folder, dtype="float32")
    forward = engine.reader.model.forward

    def scarce(*args, **kwargs):
        if kwargs["input_ids"].shape[1] > 600:
            torch.empty(1 << 60, dtype=torch.float32)
        return forward(*args, **kwargs)

    engine.reader.model.forward = scarce
    found = {a.id: a for a in engine.generate([ask(0, 900), ask(1, 20), ask(2, 1000)])}
    assert found["q1"].error is None
    for name in ("q0", "q2"):
        assert found[name].finish_reason == "error" and found[name].error.startswith("out of memory")


def test_another_rope_and_window_can_be_asked_for(folder):
    base = open_engine(str(folder), dtype="float32")
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    changed = open_engine(str(folder), dtype="float32", rope=rope, window=256)
    assert changed.window == 256
    ids = base.tokenizer(prose(1, 60))["input_ids"]
    assert not torch.allclose(base.loss_by_token(ids), changed.loss_by_token(ids))
