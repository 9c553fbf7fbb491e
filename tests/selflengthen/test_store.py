"""The state file: what is written survives, errors stay open, damage and other schemas are named."""

import contextlib
import json
import sqlite3

import pytest

from lengthen.common.errors import LengthenError
from lengthen.generate.engine import Answer, Request
from lengthen.selflengthen.export import export
from lengthen.selflengthen.store import Key, Outcome, Store, describe
from lengthen.selflengthen.training import chat_row, with_replay
from tests.selflengthen.parts import prose

KEY = Key(1, "response", "i00001", 0, 2, "1a")
REQUEST = Request("r", messages=({"role": "user", "content": "Write."},), max_new_tokens=9, seed=4)


def test_an_answer_is_there_for_the_next_process(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    store.sending(KEY, REQUEST)
    assert store.answer(KEY) is None
    store.answered(KEY, Answer("r", "", "error", error="HTTP 500"))
    assert store.answer(KEY) is None
    store.sending(KEY, REQUEST)
    store.answered(KEY, Answer("r", "Well.", "stop", 3, 2, 0.5))
    # No close: a killed process does not close either.
    again = Store(tmp_path / "s.sqlite")
    found = again.answer(KEY)
    assert found is not None and (found.text, found.finish_reason, found.new_tokens) == ("Well.", "stop", 2)
    sends, errors, request = again.query("SELECT sends, errors, request FROM requests")[0]
    assert (sends, errors) == (2, 1)
    assert json.loads(request)["messages"] == list(REQUEST.messages or ()) and json.loads(request)["seed"] == 4


def test_other_schemas_and_damaged_files_are_named(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    store.set_meta("schema", "99")
    store.close()
    with pytest.raises(LengthenError, match="schema 99"):
        Store(tmp_path / "s.sqlite")
    (tmp_path / "bad.sqlite").write_bytes(b"this is no database at all, but long enough to be looked at" * 40)
    with pytest.raises(LengthenError, match="cannot be opened"):
        Store(tmp_path / "bad.sqlite")
    with sqlite3.connect(tmp_path / "other.sqlite") as db:
        db.execute("CREATE TABLE t(a)")
    with pytest.raises(LengthenError, match="no state file"):
        describe(tmp_path / "other.sqlite")


def test_phases_end_once(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    assert store.begin(1, "write") and store.begin(1, "write") and store.phase(1, "write") is None
    store.end(1, "write", {"kept": 3})
    assert not store.begin(1, "write") and store.phase(1, "write") == {"kept": 3}


def test_selection_and_pages(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    for i in range(3):
        store.finish(Outcome(1, "response", f"i{i}", 0, prose(40), 40, 40, None, {"tries": 1}))
    store.finish(Outcome(1, "response", "i3", 0, None, 0, 0, None, {}))
    store.keep(1, "response", "i1", 0, True)
    store.keep(1, "response", "i2", 0, False)
    assert [o.item for o in store.outcomes(1, "response", kept=True)] == ["i1"]
    assert len(store.outcomes(1, "response")) == 4
    store.verdict(KEY, "loop", "61 words copied", 200, 90)
    page = describe(tmp_path / "s.sqlite")
    assert "loop" in page and "a stretch longer than" in page and "61 words copied" in page and "not_selected" in page


def test_export_and_replay(tmp_path):
    import pyarrow.parquet as pq

    store = Store(tmp_path / "s.sqlite")
    for i in range(9):
        store.add_row(
            "final", chat_row(f"r{i}", "Write.", prose(30, i), "self-lengthen", {"words": 30, "kind": "about"})
        )
    assert export(store, tmp_path) == 9
    table = pq.read_table(tmp_path / "chat.parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text().splitlines()]
    assert [row["messages"] for row in table] == [row["messages"] for row in lines]
    assert json.loads(table[0]["meta"]) == lines[0]["meta"]
    assert json.loads((tmp_path / "rejections.json").read_text())["rules"] == []
    from lengthen.recipe.stages.self_lengthen import RoleTraining

    settings = RoleTraining(replay=str(tmp_path), replay_share=0.25)
    mixed = with_replay(lines, settings, 1)
    assert len(mixed) == 12 and sum(row["source"] == "replay" for row in mixed) == 3
    assert len({row["id"] for row in mixed}) == 12 and with_replay(lines, settings, 1) == mixed
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "chat.jsonl").write_text("")
    with pytest.raises(LengthenError, match="holds no rows"):
        with_replay(lines, RoleTraining(replay=str(tmp_path / "empty")), 1)


def test_an_answer_does_not_write_its_prompt_again(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    long = Request("r", messages=({"role": "user", "content": "word " * 200_000},), max_new_tokens=9)
    store.sending(KEY, long)
    log = tmp_path / "s.sqlite-wal"
    before = log.stat().st_size
    assert before > 1_000_000
    store.answered(KEY, Answer("r", "Well.", "stop", 3, 2, 0.5))
    assert log.stat().st_size - before < 100_000
    found = store.query("SELECT text, seconds, length(request) FROM requests")[0]
    assert found[:2] == ("Well.", 0.5) and found[2] > 1_000_000


def test_what_is_written_together_is_seen_at_once(tmp_path):
    store = Store(tmp_path / "s.sqlite")

    def seen() -> int:
        with contextlib.closing(sqlite3.connect(f"file:{store.path}?mode=ro", uri=True)) as other:
            return other.execute("SELECT COUNT(*) FROM verdicts").fetchone()[0]

    with store.together():
        store.verdict(KEY, "loop")
        with store.together():  # joins
            store.verdict(Key(1, "response", "i00002"), "loop")
        assert seen() == 0 and len(store.query("SELECT * FROM verdicts")) == 2
    assert seen() == 2
    with pytest.raises(ValueError), store.together():
        store.verdict(Key(1, "response", "i00003"), "loop")
        raise ValueError
    assert seen() == 3  # what was judged before an error is known


def test_rows_of_a_purpose_are_replaced_as_a_whole(tmp_path):
    store = Store(tmp_path / "s.sqlite")
    rows = [chat_row(f"r{i}", "Write.", prose(30, i), "self-lengthen", {}) for i in range(3)]
    store.set_rows("generator-1", rows)
    store.set_rows("final", rows[:1])
    store.set_rows("generator-1", rows[1:])
    assert [row["id"] for row in store.rows("generator-1")] == ["r1", "r2"]
    assert [row["id"] for row in store.rows("final")] == ["r0"]
