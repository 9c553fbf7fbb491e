"""A tiny real model that several test files share."""

import random

import pytest

from tests.conftest import make_model

SENTENCES = (
    "The harbour wakes before the town.", "Boats come in with their lamps.", "A keeper counts crates.",
    "The first carts roll over wet stones.", "What is the number of the crate?", "It is the ninth.",
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The tiny model after a few seconds of training: it ends its turns, and its sentences."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = make_model(tmp_path_factory.mktemp("writer"), window=4096)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    draws = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(120):
        turns = []
        for _ in range(8):
            text = " ".join(draws.choice(SENTENCES) for _ in range(draws.randint(2, 8)))
            messages = [{"role": "user", "content": "Write."}, {"role": "assistant", "content": text}]
            turns.append(tokenizer.apply_chat_template(messages, tokenize=False))
        batch = tokenizer(turns, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder
