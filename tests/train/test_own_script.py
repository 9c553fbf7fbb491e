"""The code on docs/own-script.md runs as printed, and documents do not leak in it."""

from __future__ import annotations

import random
import re
from pathlib import Path

from tests.train.rows import make_row, write_rows

PAGE = Path(__file__).parents[2] / "docs" / "own-script.md"


def test_both_blocks_of_the_page_run(tmp_path, model_folder):
    import torch

    rng = random.Random(0)
    rows = write_rows(tmp_path / "data", [make_row(rng, [200, 150], 300) for _ in range(8)])
    first, second = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names = {"MODEL": str(model_folder), "ROWS": str(rows), "OUT": str(tmp_path / "out")}
    exec(compile(first, str(PAGE), "exec"), names)
    losses = [line["loss"] for line in names["trainer"].state.log_history if "loss" in line]
    assert len(losses) == 4 and losses[-1] < losses[0]
    batch = names["collator"]([names["rows"][0]])
    assert int(batch["position_ids"].max()) > 1000
    model = names["model"].eval()
    with torch.no_grad():
        before = model(**batch).logits
        batch["input_ids"][0, 0] += 1
        after = model(**batch).logits
    edge = int(batch["doc_lens"][0])
    assert (before - after)[0, :edge].abs().max() > 0
    assert (before - after)[0, edge:].abs().max() == 0
    exec(compile(second, str(PAGE), "exec"), names)
    assert names["model"].config.rope_parameters["rope_type"] == "yarn"
    assert names["model"].config.max_position_embeddings == 2048
