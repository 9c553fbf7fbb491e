"""The whole stage: every token accounted for, the same bytes for any worker count and after any kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json, sha256_tree
from lengthen.data.shards import open_rows, read_facts, read_row
from lengthen.data.tokenize import load_text_tokenizer, save_tokenizer
from tests.data.helpers import corpus, model_folder, run, stage, words, write_jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


def rows_of(folder: Path):
    dataset = open_rows(folder)
    return [read_row(dataset, number) for number in range(len(dataset))]


@pytest.fixture(scope="module")
def fast(model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def pieces_by_document(rows) -> Counter:
    return Counter(tuple(part.tolist()) for row in rows for part in np.split(row.ids, np.cumsum(row.doc_lens)[:-1]))


def test_every_document_is_in_the_rows_once_with_its_end(tmp_path, model, fast):
    source = corpus(tmp_path / "in.jsonl", 200)
    result = run(stage(model, [{"kind": "jsonl", "paths": str(source)}], row_length=2048), tmp_path / "out")
    texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    end = fast.convert_tokens_to_ids("<|endoftext|>")
    wanted = Counter((*fast(text, add_special_tokens=False).input_ids, end) for text in texts)
    rows = rows_of(tmp_path / "out")
    assert pieces_by_document(rows) == wanted
    assert result.counts["tokens"] == sum(len(ids) * n for ids, n in wanted.items())
    assert all(row.ids.dtype == np.int32 and row.attend == "isolated" for row in rows)
    facts = read_json(tmp_path / "out/rows/dataset.json")
    assert facts["rows"] == len(rows) and facts["columns"] == ["input_ids", "doc_lens", "attend", "sources"]
    assert not (tmp_path / "out/.work").exists()


def test_plain_indexing_and_read_row_agree(tmp_path, model):
    source = corpus(tmp_path / "in.jsonl", 40)
    run(stage(model, [{"kind": "jsonl", "paths": str(source)}]), tmp_path / "out")
    dataset = open_rows(tmp_path / "out").shuffle(seed=1)
    for number in range(len(dataset)):
        row = read_row(dataset, number)
        assert dataset[number]["input_ids"] == row.ids.tolist()
        assert dataset[number]["doc_lens"] == row.doc_lens.tolist()
        assert dataset[number]["sources"] == list(row.sources)


SOURCES = (
    {"packing": "best_fit"},
    {"packing": "concatenate"},
    {"packing": "whole_documents", "piece_length": 64},
    {"interleave": {"method": "cip"}},
    {"interleave": {"method": "utk"}},
)


def test_worker_counts_and_part_sizes_change_no_byte(tmp_path, model):
    talks = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes"}]} for n in range(30)
    ]
    sources = [{"kind": "chat", "name": "chat", "paths": str(write_jsonl(tmp_path / "chat.jsonl", talks))}]
    for number, way in enumerate(SOURCES):
        path = corpus(tmp_path / f"in{number}.jsonl", 60, seed=number)
        sources.append({"kind": "jsonl", "name": f"s{number}", "paths": str(path), **way})  # type: ignore[arg-type]
    settings = {"shard_tokens": 4096, "filters": {"exact_duplicates": True, "near_duplicates": True}}
    run(stage(model, sources, part_bytes=4000, **settings), tmp_path / "one")
    run(stage(model, sources, part_bytes=4000, executor={"workers": 2}, **settings), tmp_path / "two")
    run(stage(model, sources, part_bytes=10**9, **settings), tmp_path / "whole")
    assert sha256_tree(tmp_path / "one") == sha256_tree(tmp_path / "two")
    assert sha256_tree(tmp_path / "one/rows") == sha256_tree(tmp_path / "whole/rows")
    run(stage(model, sources, part_bytes=4000, **settings), tmp_path / "other", seed=8)
    assert sha256_tree(tmp_path / "one/rows") != sha256_tree(tmp_path / "other/rows")


SCRIPT = """
import sys, yaml
from pathlib import Path
from lengthen.common.manifest import StageContext
from lengthen.data.prepare import prepare
from lengthen.recipe.stages.prepare import PrepareStage

if __name__ == "__main__":
    settings = PrepareStage.model_validate(yaml.safe_load(Path(sys.argv[1]).read_text()))
    folder = Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    prepare(settings, StageContext(folder, seed=7, recipe="test", stage="prepare"))
"""


def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(tmp_path, model):
    paths = [str(corpus(tmp_path / f"in/{n}.jsonl", 300, seed=n)) for n in range(4)]
    sources = [{"kind": "jsonl", "paths": paths}]
    settings = stage(model, sources, shard_tokens=8192, part_bytes=20_000, filters={"exact_duplicates": True})
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    (tmp_path / "go.py").write_text(SCRIPT)
    run(settings, tmp_path / "plain")
    rng = random.Random(5)
    command = [sys.executable, str(tmp_path / "go.py"), str(tmp_path / "stage.yaml"), str(tmp_path / "killed")]
    kills = 0
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for _ in range(60):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
        # Past the imports (about three seconds), so that kills hit the work itself.
        begun = time.monotonic()
        while process.poll() is None and not (tmp_path / "killed/.work").exists() and time.monotonic() - begun < 30:
            time.sleep(0.01)
        try:
            process.wait(timeout=rng.uniform(0.0, 1.0) + (1.5 if kills else 0.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            if kills < 6:
                continue
            process = subprocess.Popen(command, env=environment, start_new_session=True)
            process.wait(timeout=120)
        assert process.returncode == 0
        break
    assert kills >= 1
    assert sha256_tree(tmp_path / "killed") == sha256_tree(tmp_path / "plain")


def test_shares_are_met_and_told(tmp_path, model):
    sources = [
        {"kind": "jsonl", "name": "a", "share": 0.6, "paths": str(corpus(tmp_path / "a.jsonl", 400, 1))},
        {"kind": "jsonl", "name": "b", "share": 0.3, "paths": str(corpus(tmp_path / "b.jsonl", 400, 2))},
        {"kind": "jsonl", "name": "c", "share": 0.1, "paths": str(corpus(tmp_path / "c.jsonl", 400, 3))},
    ]
    run(stage(model, sources, tokens=30_000), tmp_path / "out")
    report = read_json(tmp_path / "out/data_report.json")
    assert abs(report["tokens"] - 30_000) < 50
    for row, share in zip(report["mix"], (0.6, 0.3, 0.1)):
        assert abs(row["share"] - share) < 0.005 and not row["dry"]
    kept = sum(s["tokens_kept"] for s in report["sources"])
    assert kept == report["tokens"] + report["drops"]["beyond_budget"]["tokens"]


def test_a_source_that_runs_dry_is_told_or_stops(tmp_path, model):
    sources = [
        {"kind": "jsonl", "name": "a", "share": 0.5, "paths": str(corpus(tmp_path / "a.jsonl", 400, 1))},
        {"kind": "jsonl", "name": "b", "share": 0.5, "paths": str(corpus(tmp_path / "b.jsonl", 10, 2))},
    ]
    result = run(stage(model, sources, tokens=30_000), tmp_path / "out")
    report = read_json(tmp_path / "out/data_report.json")
    assert [row["dry"] for row in report["mix"]] == [False, True]
    assert any(note.startswith("b ran dry: 15,000 tokens asked for") for note in result.notes)
    with pytest.raises(LengthenError, match="b: 15,000 tokens were asked for"):
        run(stage(model, sources, tokens=30_000, on_dry="fail"), tmp_path / "strict")
    repeated = [sources[0], {**sources[1], "repeat": 100}]
    run(stage(model, repeated, tokens=30_000), tmp_path / "repeated")
    second = read_json(tmp_path / "repeated/data_report.json")["mix"][1]
    assert not second["dry"] and second["passes"] > 2 and abs(second["share"] - 0.5) < 0.005


def test_a_budget_below_every_document_says_so(tmp_path, model):
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "A sentence that goes on. " * 200}) + "\n")
    sources = [{"kind": "jsonl", "name": "a", "share": 1.0, "paths": str(tmp_path / "long.jsonl")}]
    with pytest.raises(LengthenError, match="No row can be made") as refused:
        run(stage(model, sources, tokens=100), tmp_path / "out")
    assert "beyond_budget: 1 documents" in str(refused.value) and "raise tokens" in str(refused.value)


def test_no_row_holds_a_repeated_document_twice(tmp_path, model):
    rows = [{"text": f"{n} crates of rope"} for n in range(20)]
    source = {"kind": "jsonl", "paths": str(write_jsonl(tmp_path / "in.jsonl", rows)), "repeat": 2.5}
    run(stage(model, [source], row_length=4096), tmp_path / "out")
    made = rows_of(tmp_path / "out")
    assert len(made) == 3
    for row in made:
        parts = [tuple(p.tolist()) for p in np.split(row.ids, np.cumsum(row.doc_lens)[:-1])]
        assert len(parts) == len(set(parts))
    assert sum(len(row.doc_lens) for row in made) in range(48, 53)


def test_length_buckets_and_whole_documents_follow_prolongs_second_stage(tmp_path, model):
    rng = random.Random(0)
    texts = [{"text": words(rng, n)} for n in [1200] * 12 + [150] * 80 + [20] * 50]
    buckets = [{"share": 0.5, "piece_length": 512}, {"share": 0.5, "piece_length": 64}]
    source = {"kind": "jsonl", "paths": str(write_jsonl(tmp_path / "in.jsonl", texts)), "packing": "whole_documents",
              "buckets": buckets}  # fmt: skip
    run(stage(model, [source], row_length=512, tokens=16_384), tmp_path / "out")
    report = read_json(tmp_path / "out/data_report.json")
    assert [abs(row["share"] - 0.5) < 0.05 for row in report["mix"]] == [True, True]
    shapes = Counter(tuple(row.doc_lens.tolist()) for row in rows_of(tmp_path / "out"))
    assert set(shapes) <= {(512,), (64,) * 8, *((64,) * n for n in range(1, 8))}
    assert report["drops"]["not_in_any_bucket_or_domain"]["items"] > 0


def test_domains_have_shares_of_their_own(tmp_path, model):
    paths = [str(corpus(tmp_path / f"{d}.jsonl", 300, seed, domain=d)) for seed, d in enumerate(("law", "sea", "art"))]
    source = {"kind": "jsonl", "paths": paths, "domains": {"law": 0.75, "sea": 0.25}}
    run(stage(model, [source], tokens=12_000), tmp_path / "out")
    report = read_json(tmp_path / "out/data_report.json")
    assert [round(row["share"], 2) for row in report["mix"]] == [0.75, 0.25]
    assert report["drops"]["not_in_any_bucket_or_domain"]["items"] == 300
    with pytest.raises(LengthenError, match="no documents of domain 'tax'"):
        run(stage(model, [{**source, "domains": {"tax": 1.0}}], tokens=100), tmp_path / "none")


def test_conversations_are_masked_packed_together_and_never_cut_unseen(tmp_path, model, fast):
    rows = [
        {
            "id": str(n),
            "messages": [{"role": "user", "content": "why " * (n * 8)}, {"role": "assistant", "content": f"since {n}"}],
        }
        for n in range(20)
    ]
    path = str(write_jsonl(tmp_path / "chat.jsonl", rows))
    result = run(stage(model, [{"kind": "chat", "paths": path}]), tmp_path / "out")
    made = rows_of(tmp_path / "out")
    answers = Counter()
    for row in made:
        assert row.loss_mask is not None
        for ids, mask in zip(*(np.split(a, np.cumsum(row.doc_lens)[:-1]) for a in (row.ids, row.loss_mask))):
            answers[fast.decode(ids[mask.astype(bool)])] += 1
            assert fast.decode(ids).startswith("<|im_start|>user")
    dropped = result.drops["conversation_longer_than_row"]["items"]
    assert dropped > 0 and sum(answers.values()) == 20 - dropped
    assert set(answers) == {f"since {n}<|im_end|>" for n in range(20 - dropped)}
    assert any(len(row.doc_lens) > 1 for row in made)
    single = run(stage(model, [{"kind": "chat", "paths": path, "packing": "none"}]), tmp_path / "single")
    assert single.counts["rows"] == 20 - dropped
    cut = run(
        stage(model, [{"kind": "chat", "paths": path, "long_conversations": "cut"}], on_error="skip"), tmp_path / "cut"
    )
    assert cut.drops["no_trained_token"]["items"] == dropped == cut.drops["conversation_cut"]["items"]


def test_units_of_conversations_reach_the_rows_and_texts_beside_them_have_none(tmp_path, model, fast):
    """Packed and alone: units begin with every document, and no answer is cut. Interleaved ones are refused."""
    rng = random.Random(5)
    talks = [
        {"id": str(n), "messages": [
            {"role": "user", "content": ". ".join(words(rng, 6) for _ in range(4)) + f".\n\nWhy {n}?"},
            {"role": "assistant", "content": f"since {n}. So it is."}]}
        for n in range(12)
    ]  # fmt: skip
    chat = {"kind": "chat", "paths": str(write_jsonl(tmp_path / "chat.jsonl", talks))}
    text = {"kind": "jsonl", "paths": str(corpus(tmp_path / "in.jsonl", 20))}
    for name, extra in (("packed", {}), ("alone", {"packing": "none"})):
        joined = {**text, "interleave": {"method": "cip"}} if name == "alone" else text
        run(stage(model, [{**chat, **extra}, joined]), tmp_path / name)
        made = rows_of(tmp_path / name)
        assert read_facts(tmp_path / name)["columns"][-2:] == ["loss_mask", "unit_lens"]
        of_talks = [row for row in made if set(row.sources) == {"chat"}]
        assert of_talks and len(of_talks) < len(made)
        for row in of_talks:
            assert set(row.loss_mask.tolist()) == {0, 1}
            begins = np.cumsum([0, *row.unit_lens.tolist()])[:-1]
            documents = np.cumsum([0, *row.doc_lens.tolist()])[:-1]
            assert set(documents.tolist()) <= set(begins.tolist())
            assert not row.loss_mask[np.setdiff1d(begins, documents)].any()
        # Four sentences, then question and answer in one.
        assert all(len(row.unit_lens) == 5 * len(row.doc_lens) for row in of_talks)
        for row in made:
            if "chat" not in row.sources:
                assert row.unit_lens is None and row.loss_mask.all()
    for source in (chat, {"kind": "hub", "dataset": "owner/talks", "messages_field": "messages"}):
        with pytest.raises(ValueError, match="conversations cannot be interleaved"):
            stage(model, [{**source, "interleave": {"method": "cip"}}])


def test_joined_rows_hold_the_same_tokens_as_isolated_ones(tmp_path, model):
    path = str(corpus(tmp_path / "in.jsonl", 80))
    for name, extra in (("plain", {}), ("cip", {"interleave": {"method": "cip", "chunks": 3}})):
        run(stage(model, [{"kind": "jsonl", "paths": path, **extra}]), tmp_path / name)
    plain, joined = rows_of(tmp_path / "plain"), rows_of(tmp_path / "cip")
    assert [Counter(row.ids.tolist()) for row in plain] == [Counter(row.ids.tolist()) for row in joined]
    assert {row.attend for row in joined} == {"joined"}
    assert sum(len(row.doc_lens) for row in joined) > sum(len(row.doc_lens) for row in plain)


def test_dropped_documents_are_written_with_their_rule(tmp_path, model):
    path = str(corpus(tmp_path / "in.jsonl", 100))
    filters = {"min_tokens": 30, "max_tokens": 200}
    result = run(
        stage(model, [{"kind": "jsonl", "paths": path}], filters=filters, write_dropped=True), tmp_path / "out"
    )
    rows = [json.loads(line) for file in sorted((tmp_path / "out/dropped").glob("*.jsonl")) for line in file.open()]
    rules = Counter(row["rule"] for row in rows)
    assert rules == {rule: row["items"] for rule, row in result.drops.items()}
    assert set(rules) == {"too_short", "too_long"}
    assert all((row["tokens"] < 30) == (row["rule"] == "too_short") and row["text"] for row in rows)
    kept = {ids for ids in pieces_by_document(rows_of(tmp_path / "out"))}
    assert all(30 <= len(ids) <= 200 for ids in kept)


def test_a_task_that_is_killed_runs_again_and_only_that(tmp_path, model):
    """Workers that are shot while they work: the stage goes on by itself."""
    paths = [str(corpus(tmp_path / f"in/{n}.jsonl", 2000, seed=n)) for n in range(3)]
    settings = stage(
        model, [{"kind": "jsonl", "paths": paths}], part_bytes=60_000, executor={"workers": 2, "attempts": 9}
    )
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    (tmp_path / "go.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "go.py"), str(tmp_path / "stage.yaml"), str(tmp_path / "out")]
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stderr=subprocess.PIPE, text=True)
    shot = 0
    while process.poll() is None:
        time.sleep(0.05)
        for child in _workers(process.pid) if shot < 3 else ():
            if len(list((tmp_path / "out/.work/tokens").glob("*.json"))) > 2 * shot:
                os.kill(child, signal.SIGKILL)
                shot += 1
                break
    assert process.returncode == 0, process.stderr.read() if process.stderr else ""
    assert shot >= 1
    run(stage(model, [{"kind": "jsonl", "paths": paths}], part_bytes=60_000), tmp_path / "plain")
    assert sha256_tree(tmp_path / "out") == sha256_tree(tmp_path / "plain")


def _workers(parent: int) -> list[int]:
    import psutil

    try:
        found = psutil.Process(parent).children()
        return [child.pid for child in found if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def test_saved_tokenizer_is_what_tasks_load(tmp_path, fast):
    save_tokenizer(fast, "auto", "auto", tmp_path)
    assert load_text_tokenizer(tmp_path).end == fast.convert_tokens_to_ids("<|endoftext|>")
