"""What lies beside the rows, and any mix from token store to rows."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthen.common.files import read_json, sha256_tree
from lengthen.data.inspect import inspect_path
from lengthen.data.plan import plan_rows
from lengthen.data.rows import RowMaker
from lengthen.data.store import PartWriter, TokenReader, TokenStore, part_file
from lengthen.recipe.stages.prepare import PrepareStage
from tests.data.helpers import corpus, model_folder, run, stage, words, write_jsonl

WAYS = (
    {"packing": "best_fit"},
    {"packing": "concatenate"},
    {"packing": "whole_documents", "piece_length": 64},
    {"interleave": {"method": "cip"}},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


def test_reading_tokens_keeps_none_of_their_file_in_memory(tmp_path):
    from lengthen.common.memory import peak_memory_gib, reset_peak_memory

    np.arange(2**25, dtype="<i4").tofile(part_file(tmp_path, 0, ".tokens"))
    reader = TokenReader(tmp_path)
    reader.tokens(0, 0, 4096)
    reset_peak_memory()
    before = peak_memory_gib()
    for place in np.random.default_rng(0).permutation(2**13).tolist():
        assert reader.tokens(0, place * 4096, 4096)[1] == place * 4096 + 1
    reader.close()
    # The file has 0.125 GiB.
    assert peak_memory_gib() - before < 0.06


def test_duplicates_are_written_as_they_were(tmp_path, model):
    texts = [{"id": str(n), "text": f"{words(random.Random(n % 4), 30)}"} for n in range(12)]
    talk = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "yes"}]}
    talks = write_jsonl(tmp_path / "chat.jsonl", [{"id": f"t{n}", **talk} for n in range(3)])
    sources = [
        {"kind": "jsonl", "paths": str(write_jsonl(tmp_path / "in.jsonl", [{"text": "short"}, *texts]))},
        {"kind": "chat", "paths": str(talks)},
    ]
    filters = {"exact_duplicates": True, "near_duplicates": True, "min_tokens": 8}
    asked = {"filters": filters, "write_dropped": True, "part_bytes": 1500}
    result = run(stage(model, sources, **asked), tmp_path / "out")
    rows = [json.loads(line) for file in sorted((tmp_path / "out/dropped").glob("*.jsonl")) for line in file.open()]
    assert Counter(row["rule"] for row in rows) == Counter({r: row["items"] for r, row in result.drops.items()})
    assert sum(row["tokens"] for row in rows) == sum(row["tokens"] for row in result.drops.values())
    told = {row["id"]: row for row in rows if row["rule"] == "exact_duplicate"}
    assert set(told) == {*(str(n) for n in range(4, 12)), "t1", "t2"}
    assert (
        all(told[row["id"]]["text"] == row["text"] for row in texts[4:]) and told["t1"]["messages"] == talk["messages"]
    )
    run(stage(model, sources, executor={"workers": 2}, **asked), tmp_path / "two")
    assert sha256_tree(tmp_path / "out") == sha256_tree(tmp_path / "two")


def test_a_card_and_tables_lie_beside_the_rows(tmp_path, model):
    paths = [str(corpus(tmp_path / f"{d}.jsonl", 60, seed, domain=d)) for seed, d in enumerate(("law", "sea"))]
    run(stage(model, [{"kind": "jsonl", "name": "web", "paths": paths}], filters={"min_tokens": 20}), tmp_path / "out")
    report = read_json(tmp_path / "out/data_report.json")
    assert {row["domain"] for row in report["domains"]} == {"law", "sea"}
    assert sum(row["tokens"] for row in report["domains"]) == report["tokens"]
    assert abs(sum(row["share"] for row in report["domains"]) - 1) < 1e-9
    card = (tmp_path / "out/rows/README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["configs"][0]["data_files"] == "*.parquet"
    first = report["domains"][0]
    for line in (
        f"| web | {first['domain']} | {first['documents']:,} | {first['tokens']:,} | {first['share']:.2%} |",
        f"| too_short | {report['drops']['too_short']['items']} | {report['drops']['too_short']['tokens']} |",
        f"{report['rows']:,} rows of at most 256 tokens; {report['tokens']:,} tokens",
    ):
        assert line in card
    text = inspect_path(tmp_path / "out", rows=0)
    assert f"web / {first['domain']}: {first['share']:.2%}, {first['tokens']:,} tokens" in text


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 90)), min_size=1, max_size=40),
    st.lists(st.sampled_from(WAYS), min_size=3, max_size=3),
    st.integers(0, 99),
)
def test_any_mix_of_packings_holds_each_token_once(tmp_path_factory, documents, ways, seed):
    """From a token store to rows: every token of every document once (whole pieces only, where that is asked for)."""
    work = tmp_path_factory.mktemp("work") / ".work"
    present = sorted({source for source, _ in documents})
    store_of = {source: PartWriter(work / "tokens", part, False) for part, source in enumerate(present)}
    wanted: Counter = Counter()
    for number, (source, length) in enumerate(documents):
        ids = np.arange(length, dtype=np.int32) + 1000 * number
        store_of[source].add([ids])
        store_of[source].keep("")
        whole = ways[source].get("piece_length")
        wanted.update(ids[: length // whole * whole if whole else length].tolist())
    for part, source in enumerate(present):
        store_of[source].close({"source": part, "drops": {}})
    named = [{"kind": "text", "name": f"s{n}", "paths": "x", **ways[s]} for n, s in enumerate(present)]
    stage_settings = PrepareStage.model_validate({"row_length": 64, "sources": named})
    store = TokenStore(work / "tokens", len(present))
    planned = plan_rows(stage_settings, store, np.array(store.part, dtype=np.int64), {}, seed, 0)
    planned.plan.save(work / "plan")
    maker = RowMaker(work, planned.plan, [one["name"] for one in named], seed, ["input_ids"])
    found: Counter = Counter()
    for number in range(planned.plan.count):
        row = maker.row(number)
        row.check(64)
        found.update(row.ids.tolist())
        again = maker.row(number)
        assert again.ids.tolist() == row.ids.tolist() and again.doc_lens.tolist() == row.doc_lens.tolist()
    maker.reader.close()
    assert found == wanted
