"""The paper-scale recipes run whole in miniature: each preset's own stages, in its own order, on a model made here."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from lengthen.common.files import read_json, read_json_lines
from lengthen.data.mds import write_mds
from lengthen.data.shards import Row
from lengthen.recipe.load import load_recipe
from lengthen.recipe.schema import build_recipe
from lengthen.runner import run_recipe
from tests.conftest import make_model
from tests.generate.server import Script, serving

SMALL = {"steps": 2, "tokens": None, "epochs": None, "batch_rows": 2, "batch_tokens": None, "save_every": 1,
         "sequence_parallel": 1, "dtype": "float32", "warmup": 0}  # fmt: skip
SHORT = {"suites": ["needle"], "lengths": [512], "samples": 2, "haystack": "noise"}


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """A folder with a model, long texts and short chats."""
    folder = tmp_path_factory.mktemp("miniature")
    make_model(folder / "model", window=256)
    (folder / "texts").mkdir()
    for number in range(60):
        lines = [f"On day {day} of year {number} the keeper counted {day * 7} crates of crab." for day in range(20)]
        (folder / "texts" / f"{number}.txt").write_text("\n".join(lines))
    said = [(f"What comes after {n}?", f"It is {n + 1}.") for n in range(60)]
    chats = [[{"role": "user", "content": asked}, {"role": "assistant", "content": answer}] for asked, answer in said]
    (folder / "chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    texts = [path.read_text() for path in sorted((folder / "texts").iterdir())]
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return folder


def run(preset: str, folder: Path, material: Path, stages: dict[str, dict[str, Any]]) -> Path:
    """Run a preset with these changes; the recipe may be changed in sizes and paths, never in its stages."""
    names = load_recipe(preset).names
    assert set(stages) <= set(names)
    recipe = {"extends": preset, "name": "miniature", "model": str(material / "model"),
              "stages": [{"name": name, **changes} for name, changes in stages.items()]}  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    made = load_recipe(str(folder / "recipe.yaml"))
    assert made.names == names
    done = run_recipe(made, folder / "run", say=lambda _: None)
    for name in names:
        assert read_json(done / "stages" / name / "manifest.json")["status"] == "done", name
        losses = [row["loss"] for row in read_json_lines(done / "stages" / name / "metrics.jsonl") if "loss" in row]
        assert made.stage(name).kind != "train" or (len(losses) == 2 and np.isfinite(losses).all()), name
    assert (done / "report.html").exists() and (done / "model/model.safetensors").exists()
    return done


def read_rows(stage: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((stage / "rows").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def small(**more: Any) -> dict[str, Any]:
    return {**SMALL, **more}


def source(kind: str, name: str, path: Path, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "name": name, "paths": [str(path)], **more}


def test_longalign(material, tmp_path):
    def write(prompt: str, body: dict) -> str:
        if "numbered 1." in prompt or "编号" in prompt:
            return "\n".join(f"{n}. What did the keeper count on day {n}?" for n in range(1, 6))
        return f"The keeper counted {7 * int(re.findall(r'on day ([0-9]+)', prompt)[-1])} crates, as the text says."

    texts, chats = material / "texts", material / "chats.jsonl"
    with serving(Script(write=write)) as address:
        done = run("longalign", tmp_path, material, {
            "long-text": {"row_length": 512, "tokens": 4096,
                          "sources": [source("text", "documents", texts, share=1.0)]},
            "long-pretraining": small(length=512),
            "instructions": {"documents": [str(texts)], "writer": f"{address}#test-model", "count": 8,
                             "min_tokens": 200, "max_tokens": 360, "languages": ["en"]},
            "sft-rows": {"row_length": 512, "sources": [
                source("chat", "long", Path("@instructions"), pool="sft"), source("chat", "chats", chats, pool="sft"),
            ]},
            "sft": small(),
            "after": SHORT,
        })  # fmt: skip
    rope = read_json(done / "model/config.json")["rope_parameters"]
    assert rope["rope_theta"] == 2e6, "base x 200"
    rows = read_json(done / "stages/sft-rows/manifest.json")["counts"]
    assert rows["documents"] == 68, "eight long conversations and sixty short ones"


def test_longrecipe(material, tmp_path):
    tuned = make_model(tmp_path / "tuned", window=1024)
    done = run("longrecipe", tmp_path, material, {
        "documents": {"row_length": 1024, "tokens": 16384,
                      "sources": [source("text", "documents", material / "texts", share=1.0, packing="concatenate")]},
        "analyse-tokens": {"tuned": str(tuned), "samples": 4, "length": 256},
        "choose-sentences": {"row_length": 307},
        "long": small(length=1024, positions={"type": "skip", "targets": [1024]}),
        "replay-rows": {"row_length": 256, "sources": [source("chat", "chats", material / "chats.jsonl")]},
        "replay": small(),
        "after": SHORT,
    })  # fmt: skip
    config = read_json(done / "model/config.json")
    assert config["max_position_embeddings"] == 1024
    from safetensors.numpy import load_file

    start, replayed, merged = (
        load_file(path / "model.safetensors")
        for path in (material / "model", done / "stages/replay/model", done / "model")
    )
    for name, value in merged.items():
        np.testing.assert_allclose(value, (start[name] + replayed[name]) / 2, atol=1e-6)
    assert any((start[name] != replayed[name]).any() for name in start)


def test_longskywork(material, tmp_path):
    done = run("longskywork", tmp_path, material, {
        "interleaved": {"row_length": 512, "tokens": 4096, "sources": [
            source("text", "documents", material / "texts", packing="concatenate",
                   interleave={"method": "cip", "chunks": 2})
        ]},
        "long-pretraining": small(length=512),
        "chats": {"row_length": 256, "sources": [source("chat", "chats", material / "chats.jsonl")]},
        "sft": small(),
        "tables": {"count": 6, "min_tokens": 400, "max_tokens": 700, "languages": ["en"], "max_columns": 5},
        "table-rows": {"row_length": 768},
        "long-sft": small(length=768),
        "after": SHORT,
    })  # fmt: skip
    assert read_json(done / "stages/tables/manifest.json")["counts"]["conversations"] == 6
    assert read_json(done / "model/config.json")["max_position_embeddings"] >= 768


def test_ultralong(material, tmp_path):
    """1,024 for 1M, YaRN over the start model's 256; documents joined and attended across."""
    documents = source("text", "documents", material / "texts", share=1.0, packing="concatenate",
                       interleave={"method": "cip", "chunks": 1},
                       buckets=[{"share": 0.3, "max_tokens": 599}, {"share": 0.7, "min_tokens": 600}])  # fmt: skip
    done = run("ultralong", tmp_path, material, {
        "rows": {"row_length": 1024, "tokens": 8192, "sources": [documents]},
        "train": small(length=1024, rope={"factor": 4, "window": 256}),
        "chats": {"row_length": 256, "sources": [source("chat", "chats", material / "chats.jsonl")]},
        "sft": small(),
        "after": SHORT,
    })  # fmt: skip
    config = read_json(done / "model/config.json")
    rope = config["rope_parameters"]
    assert (config["max_position_embeddings"], rope["rope_type"], rope["factor"]) == (1024, "yarn", 4.0)
    assert (rope["beta_slow"], rope["beta_fast"]) == (1.0, 4.0)
    rows = read_rows(done / "stages/rows")
    assert rows and all(row["attend"] == "joined" for row in rows) and any(len(row["doc_lens"]) > 1 for row in rows)


def test_llama31(material, tmp_path):
    """Six lengths in small, each behind its gates; a needle that a random model need not find."""
    lengths = dict(zip((16, 24, 32, 64, 96, 128), (320, 384, 448, 512, 640, 768), strict=True))
    stages: dict[str, dict[str, Any]] = {"before": SHORT, "after": SHORT}
    for number, (name, length) in enumerate(lengths.items()):
        mix = source("jsonl", "mix", material / "texts.jsonl", share=1.0)
        stages[f"rows-{name}k"] = {"row_length": length, "tokens": 8 * length, "sources": [mix]}
        train = small(length=length, rope={"factor": 4, "window": 256})
        if number:
            gate = {"scores": f"@check-{list(lengths)[number - 1]}k", "task": "needle", "at_least": 0.0}
            train["requires"] = [{**gate, "length": 512}, {**gate, "compared_to": "@before"}]
        stages[f"train-{name}k"] = train
        stages[f"check-{name}k"] = SHORT
    stages["anneal"] = small(keep=2, keep_after=2)
    stages["merge"] = {"last": 2}
    done = run("llama31", tmp_path, material, stages)
    config = read_json(done / "model/config.json")
    assert config["max_position_embeddings"] == 768 and config["rope_parameters"]["rope_type"] == "llama3"
    for before, name in itertools.pairwise(lengths):
        inputs = read_json(done / f"stages/train-{name}k/manifest.json")["inputs"]
        assert {f"@check-{before}k", "@before", f"@train-{before}k"} <= set(inputs), "scores, and weights to go on from"


def _mds(folder: Path, rng: np.random.Generator, lengths: list[int], *, masked: bool = False) -> Path:
    rows = []
    for n in lengths:
        ids = rng.integers(5, 400, size=n).astype(np.int32)
        mask = (rng.random(n) < 0.5).astype(np.uint8) if masked else None
        rows.append(Row(ids, np.array([n], np.int32), "isolated", ("x",), mask))
    write_mds(folder, rows)
    return folder


def test_prolong(material, tmp_path):
    """512 for 64K and 1,024 for 512K, on MDS folders."""
    rng = np.random.default_rng(0)
    stages: dict[str, dict[str, Any]] = {}
    for stage in load_recipe("prolong").model_dump()["stages"]:
        name = stage["name"]
        if stage["kind"] == "prepare":
            last, row = name == "chats", 1024 if name == "mix-512k" else 512
            sources = []
            for one in stage["sources"]:
                whole = 1024 if one["name"].endswith("-512k") else 512
                lengths = [whole] * 6 if (one["share"] or 0) > 0.1 else [120] * 12
                folder = _mds(tmp_path / f"{name}-{one['name']}", rng, lengths, masked=last)
                share = {} if one["share"] is None else {"share": one["share"]}
                sources.append(source(one["kind"], one["name"], folder, **share))
            stages[name] = {"row_length": row, "tokens": None if last else 8192, "sources": sources}
        elif stage["kind"] == "train":
            stages[name] = small(length={"train-64k": 512, "train-512k": 1024, "sft": 1024}[name])
        elif stage["kind"] == "evaluate":
            stages[name] = SHORT
    done = run("prolong", tmp_path, material, stages)
    for name, base in (("train-64k", 8e6), ("train-512k", 1.28e8), ("sft", 1.28e8)):
        assert read_json(done / "stages" / name / "model/config.json")["rope_parameters"]["rope_theta"] == base
    assert read_json(done / "stages/mix-64k/manifest.json")["counts"]["rows"] >= 12


def test_own_sources_of_prolong_become_whole_pieces(material, tmp_path):
    """The second stage's mix from raw sources, 512 for 64K and 4,096 for 512K: each piece of a long document has one of
    the two lengths exactly, and short documents are none of them."""
    for number in range(8):
        folder = tmp_path / f"repositories/{number}"
        folder.mkdir(parents=True)
        for part in range(2 if number % 2 else 24):
            lines = [f"value_{part}_{line} = {line} * {number}" for line in range(60)]
            (folder / f"{part}.py").write_text("\n".join(lines))
    text = (material / "texts/0.txt").read_text()
    (tmp_path / "long.jsonl").write_text("\n".join(json.dumps({"text": text * n}) for n in (1, 3, 30) * 4))
    pq.write_table(pa.Table.from_pylist([{"text": text}] * 60), tmp_path / "short.parquet")
    small = {2**19: 4096, 2**19 - 1: 4095, 2**16: 512}
    sources = load_recipe("prolong-sources").stage("mix-512k").model_dump(exclude_unset=True)["sources"]
    for one in sources:
        long = one["packing"] == "whole_documents"
        lines = tmp_path / "long.jsonl" if long else material / "texts.jsonl"
        path = {"repository": tmp_path / "repositories", "chat": material / "chats.jsonl",
                "parquet": tmp_path / "short.parquet", "jsonl": lines}[one["kind"]]  # fmt: skip
        one |= {"paths": [str(path)], "repeat": 20}  # chats are few here, and the shares hold
        for bucket in one.get("buckets", ()):
            bucket |= {key: small[size] for key, size in bucket.items() if size in small}
    stage = {"kind": "prepare", "name": "mix", "row_length": 4096, "tokens": 400_000, "sources": sources}
    recipe = build_recipe({"name": "own", "model": str(material / "model"), "stages": [stage]}, "own")
    rows = read_rows(run_recipe(recipe, tmp_path / "run", say=lambda _: None) / "stages/mix")
    pieces: dict[str, list[int]] = {}
    for row in rows:
        for length, name in zip(row["doc_lens"], row["sources"], strict=True):
            pieces.setdefault(name, []).append(length)
    assert set(pieces["repositories"]) == set(pieces["books"]) == {512, 4096} and set(pieces["textbooks"]) == {4096}
    assert set(pieces) == {one["name"] for one in sources} and all(row["attend"] == "isolated" for row in rows)
    share = {name: sum(lengths) / 400_000 for name, lengths in pieces.items()}
    assert share["repositories"] == pytest.approx(0.3, abs=0.03) and share["books"] == pytest.approx(0.3, abs=0.03)
