"""Peak memory of two real optimizer steps, in a process of its own.

Arguments: model, rows, out, length, dtype, on or off (checkpointing).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lengthen.common.manifest import StageContext
from lengthen.common.memory import peak_memory_gib
from lengthen.recipe.stages.train import TrainStage
from lengthen.train.run import train

if __name__ == "__main__":
    model, rows, out, length, dtype, checkpointing = sys.argv[1:7]
    stage = TrainStage(
        model=model, rows=[rows], steps=2, batch_rows=1, length=int(length), dtype=dtype,  # type: ignore[arg-type]
        checkpointing=checkpointing == "on", save_every=1000,
    )  # fmt: skip
    train(stage, StageContext(Path(out)))
    metrics = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    print(json.dumps({"peak_gib": peak_memory_gib(), "tokens_per_second": metrics[-1]["tokens_per_second"]}))
