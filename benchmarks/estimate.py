"""`python -m benchmarks.estimate`: what `lengthen plan` says against published and measured runs.

Writes results/benchmarks/estimate.json and the tables of docs/plan.md (between its markers).
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthen.common.manifest import commit, machine, versions
from lengthen.recipe.base import ModelFacts, size_text
from lengthen.recipe.stages.train import TrainStage
from lengthen.train.devices import Devices, DeviceType, parse_devices
from lengthen.train.estimate import Estimate, estimate

ROOT = Path(__file__).parent.parent
LLAMA_8B = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False, "max_position_embeddings": 8192,
}  # fmt: skip
QWEN3_4B = {
    "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 9728, "vocab_size": 151936, "tie_word_embeddings": True, "max_position_embeddings": 40960,
}  # fmt: skip
QWEN3_8B = {**QWEN3_4B, "hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
SMOLLM2 = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A run that somebody reported. unit: tokens/s/GPU, or GPU hours for `tokens` tokens."""

    id: str
    work: str
    model: dict[str, Any]
    devices: str
    length: int
    parallel: int
    figure: float
    unit: str
    source: str
    tokens: int = 0


HOURS, SPEED = "GPU hours", "tokens/s/GPU"
TORCHTITAN = "torchtitan, benchmarks/ (fp8, ring attention)"
PROLONG = "arXiv 2410.02660, Table"
H100S = "8xH100-80GB"
PUBLISHED = (
    Published("prolong-64k-hours", "ProLong 64K stage, 8B, 20B tokens, all in", LLAMA_8B, H100S, 65536, 1, 2200, HOURS,
              f"{PROLONG} 9", 20 * 10**9),
    Published("prolong-512k-hours", "ProLong 512K stage, 8B, 20B tokens, all in", LLAMA_8B, H100S, 524288, 8, 12200,
              HOURS, f"{PROLONG} 9", 20 * 10**9),
    Published("prolong-64k", "ProLong 64K, 8B, varlen attention", LLAMA_8B, H100S, 65536, 1, 2780, SPEED,
              f"{PROLONG} 15"),
    *(Published(f"torchtitan-{size_text(n).lower()}", f"Llama-3.1-8B at {size_text(n)}, FSDP and context parallel",
                LLAMA_8B, H100S, n, sp, speed, SPEED, TORCHTITAN)
      for n, sp, speed in ((32768, 1, 3890), (65536, 1, 2540), (131072, 2, 1071), (262144, 4, 548))),
    Published("hf-ulysses-64k", "Qwen3-4B at 64K, Ulysses over 4", QWEN3_4B, "4xH100-80GB", 65536, 4, 13396 / 4, SPEED,
              "Hugging Face blog, Ulysses sequence parallelism"),
    Published("trl-1m", "Qwen3-8B at 1M, one row a step of 380 s", QWEN3_8B, H100S, 2**20, 8, 2**20 / 380 / 8, SPEED,
              "TRL 1.13 notes"),
)  # fmt: skip
# SmolLM2-135M on two cores, bf16, where a large matrix product reaches 2.3 TFLOP/s.
CPU = DeviceType("cpu", 24, 2.3e12, linear=0.2, attention=0.2, all_in=0.95, overhead_gib=0.5)
MEASURED_SPEED = ((1024, False, 515), (4096, False, 370), (4096, True, 316), (8192, True, 185), (16384, True, 120))


def price(run: Published) -> Estimate:
    stage = TrainStage(
        name=run.id, rows=["-"], length=run.length, sequence_parallel=run.parallel, batch_rows=8, steps=1,
        tokens=None, activation_offload=run.id == "trl-1m",
    )  # fmt: skip
    return estimate(stage, ModelFacts(Path("."), run.model), parse_devices(run.devices))


def rows() -> list[dict[str, Any]]:
    """One row a comparison: ours is the estimate, theirs the reported figure, error their relative difference."""
    found = []
    for run in PUBLISHED:
        priced = price(run)
        each = priced.tokens_per_second / priced.devices.count
        ours = run.tokens / each / priced.devices.type.all_in / 3600 if run.unit == HOURS else each
        found.append(_row(run.id, run.work, run.source, ours, run.figure, run.unit))
    facts = ModelFacts(Path("."), SMOLLM2)
    for length, recompute, speed in MEASURED_SPEED:
        stage = TrainStage(rows=["-"], length=length, checkpointing=recompute, dtype="bfloat16", batch_rows=1, steps=1)
        ours = estimate(stage, facts, Devices(1, CPU)).tokens_per_second
        work, name = f"SmolLM2-135M at {size_text(length)}", f"cpu-{size_text(length).lower()}"
        if recompute:
            work, name = f"{work}, recomputed", f"{name}-recomputed"
        found.append(_row(name, f"{work}, two cores", "measured, torch's own attention", ours, speed, "tokens/s"))
    return found


def _row(name: str, work: str, peer: str, ours: float, theirs: float, unit: str) -> dict[str, Any]:
    return {"id": name, "work": work, "peer": peer, "ours": round(ours, 1), "theirs": round(theirs, 1), "unit": unit,
            "ratio": round(ours / theirs, 3), "error": round(ours / theirs - 1, 3), "runs": 1, "spread": 0}  # fmt: skip


def table(found: list[dict[str, Any]]) -> str:
    """Markdown table of docs/plan.md."""
    lines = ["| run | reported | estimate | unit | error | source |", "|---|---:|---:|---|---:|---|"]
    for row in found:
        numbers = f"{row['theirs']:,.0f} | {row['ours']:,.0f} | {row['unit']} | {100 * row['error']:+.0f}%"
        lines.append(f"| {row['work']} | {numbers} | {row['peer']} |")
    return "\n".join(lines)


def put_table(page: str, text: str, name: str) -> str:
    """The page with what stands between its markers replaced."""
    begin, end = f"<!-- {name}: written by python -m benchmarks.estimate -->", f"<!-- end of {name} -->"
    return re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: f"{begin}\n{text}\n{end}", page, flags=re.S)


def main() -> None:
    found = rows()
    target = ROOT / "results" / "benchmarks" / "estimate.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    head = {"machine": machine(), "versions": versions(), "date": time.strftime("%Y-%m-%d"), "commit": commit()}
    target.write_text(json.dumps({**head, "rows": found}, indent=2) + "\n")
    page = ROOT / "docs" / "plan.md"
    page.write_text(put_table(page.read_text(), table(found), "comparison"))
    print(table(found))


if __name__ == "__main__":
    main()
