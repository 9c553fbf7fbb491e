"""Every kind of source, and every kind of broken input: an error with file and line, or a counted skip."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lengthen.common.errors import LengthenError
from lengthen.data.document import Document, Ledger
from lengthen.data.sources import plan_parts, read_part
from lengthen.data.storage import read_lines
from lengthen.recipe.stages.prepare import PrepareStage
from tests.data.helpers import model_folder, run, stage, write_jsonl

ROWS = [{"id": f"d{n}", "text": f"text number {n}", "domain": "sea" if n % 2 else "law"} for n in range(9)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(source: dict[str, Any], on_error: str = "fail", part_bytes: int = 2**20) -> tuple[list[Document], Ledger]:
    settings = PrepareStage.model_validate({"row_length": 64, "sources": [source]})
    ledger = Ledger(on_error)  # type: ignore[arg-type]
    parts = plan_parts(settings.sources, part_bytes, ledger)
    return [d for part in parts for d in read_part(settings.sources[part.source], part, ledger)], ledger


def plain(path: Path) -> Path:
    path.write_text(LINES)
    return path


def gz(path: Path) -> Path:
    path.write_bytes(gzip.compress(LINES.encode()))
    return path


def zst(path: Path) -> Path:
    path.write_bytes(zstandard.compress(LINES.encode()))
    return path


@pytest.mark.parametrize(("name", "make"), [("a.jsonl", plain), ("a.jsonl.gz", gz), ("a.jsonl.zst", zst)])
def test_jsonl_plain_and_compressed(tmp_path, name, make: Callable[[Path], Path]):
    documents, _ = read({"kind": "jsonl", "paths": str(make(tmp_path / name))})
    assert [(d.id, d.text, d.domain) for d in documents] == [(r["id"], r["text"], r["domain"]) for r in ROWS]


@given(st.lists(st.text(st.characters(blacklist_characters="\n"), max_size=9), max_size=12), st.integers(1, 40))
def test_byte_ranges_of_a_file_share_no_line_and_miss_none(tmp_path_factory, lines, size):
    path = tmp_path_factory.mktemp("lines") / "file"
    data = "\n".join(lines).encode("utf-8", "replace")
    path.write_bytes(data)
    ranges = [(start, min(start + size, len(data))) for start in range(0, len(data), size)]
    found = [line for start, end in ranges for _, line in read_lines(str(path), start, end)]
    assert found == [line for _, line in read_lines(str(path))] and b"".join(found) == data


def test_parts_do_not_change_the_documents(tmp_path):
    path = plain(tmp_path / "a.jsonl")
    whole = [d.text for d in read({"kind": "jsonl", "paths": str(path)})[0]]
    assert [d.text for d in read({"kind": "jsonl", "paths": str(path)}, part_bytes=70)[0]] == whole


def test_parquet_by_row_groups(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=4)
    documents, _ = read({"kind": "parquet", "paths": str(tmp_path)}, part_bytes=1)
    assert [(d.id, d.text, d.domain) for d in documents] == [(r["id"], r["text"], r["domain"]) for r in ROWS]


def test_text_folders_with_domains(tmp_path):
    for name in ("law/a.txt", "sea/deep/b.md", "c.txt", "picture.png", ".hidden/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"about {name}")
    documents, _ = read({"kind": "text", "paths": str(tmp_path), "domain": "folder"})
    assert [(d.id, d.domain) for d in documents] == [("c.txt", ""), ("law/a.txt", "law"), ("sea/deep/b.md", "sea")]


def test_remote_paths_through_fsspec():
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe("/corpus/a.jsonl", LINES.encode())
    fs.pipe("/corpus/b.jsonl.gz", gzip.compress(LINES.encode()))
    documents, _ = read({"kind": "jsonl", "paths": "memory://corpus"})
    assert [d.text for d in documents] == [r["text"] for r in ROWS] * 2
    with pytest.raises(LengthenError, match="memory://nothing"):
        read({"kind": "jsonl", "paths": "memory://nothing"})
    with fs.open("/tables/a.parquet", "wb") as file:
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    fs.pipe("/tables/b.txt", b"plain")
    documents, _ = read({"kind": "parquet", "paths": "memory://tables"})
    assert [d.text for d in documents] == [r["text"] for r in ROWS]
    assert [d.text for d in read({"kind": "text", "paths": "memory://tables"})[0]] == ["plain"]


def test_remote_repositories_read_as_local_ones(tmp_path):
    import io
    import tarfile

    import fsspec

    files = {
        "src/b.py": b"import a\n", "src/a.py": b"x = 1\n", "readme.md": b"About it.\n", "picture.png": b"\x89PNG",
        "vendor/c.py": b"y = 2\n", "long.py": b"#" * 3000,
    }  # fmt: skip
    fs = fsspec.filesystem("memory")
    for name, data in files.items():
        (tmp_path / "all/one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all/one" / name).write_bytes(data)
        fs.pipe(f"/repositories/one/{name}", data)
    with tarfile.open(tmp_path / "all/two.tar.gz", "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    fs.pipe("/repositories/two.tar.gz", (tmp_path / "all/two.tar.gz").read_bytes())
    fs.pipe("/repositories/notes.txt", b"no repository")
    source = {"kind": "repository", "each": True, "max_file_bytes": 2000}
    local, ledger = read({**source, "paths": str(tmp_path / "all")})
    remote, far = read({**source, "paths": "memory://repositories"})
    assert [(d.id, d.text) for d in remote] == [(d.id, d.text) for d in local] and len(remote) == 2
    local_drops, drops = ({k: v["items"] for k, v in one.drops.by_rule.items()} for one in (ledger, far))
    assert drops["file_too_large"] == local_drops["file_too_large"] == 2
    assert drops["file_other_type"] == 2 and drops["file_vendored"] == 2
    one = {"kind": "repository", "paths": "memory://repositories/two.tar.gz", "max_file_bytes": 2000}
    assert [d.text for d in read(one)[0]] == [local[1].text]
    with pytest.raises(LengthenError, match="memory://nothing"):
        read({**source, "paths": "memory://nothing"})
    with pytest.raises(LengthenError, match="holds no folders or archives"):
        read({**source, "paths": "memory://repositories/one/src"})
    with pytest.raises(LengthenError, match="is one archive"):
        read({**source, "paths": "memory://repositories/two.tar.gz"})
    fs.pipe("/repositories/cut.tar.gz", (tmp_path / "all/two.tar.gz").read_bytes()[:80])
    found, far = read({**source, "paths": "memory://repositories"}, on_error="skip")
    assert [d.id for d in found] == ["one", "two.tar.gz"]
    assert any("memory://repositories/cut.tar.gz" in problem["where"] for problem in far.problems)
    found, far = read({**one, "max_repository_bytes": 100}, on_error="skip")
    assert found == [] and far.drops.by_rule["archive_too_large"]["items"] == 1


def test_datasets_from_a_local_folder(tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "set"))
    documents, _ = read({"kind": "hub", "dataset": str(tmp_path / "set")}, part_bytes=64)
    assert [(d.id, d.text, d.domain) for d in documents] == [(r["id"], r["text"], r["domain"]) for r in ROWS]
    talks = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    datasets.Dataset.from_list(talks).save_to_disk(str(tmp_path / "chat"))
    documents, _ = read({"kind": "hub", "dataset": str(tmp_path / "chat"), "messages_field": "messages"})
    assert documents[0].messages == tuple(talks[0]["messages"])


def test_a_name_that_is_no_dataset(tmp_path):
    with pytest.raises(LengthenError, match=r"the dataset 'nobody/nothing'.*cannot be opened"):
        read({"kind": "hub", "dataset": "nobody/nothing"})
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(LengthenError, match="no column 'body'"):
        read({"kind": "hub", "dataset": str(tmp_path / "set"), "text_field": "body"})


def test_settings_that_a_saved_dataset_cannot_follow(tmp_path):
    import datasets

    found = datasets.Dataset.from_list(ROWS)
    found.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": found, "test": found.select([0])}).save_to_disk(str(tmp_path / "two"))
    assert len(read({"kind": "hub", "dataset": str(tmp_path / "two"), "split": "test"})[0]) == 1
    for name, extra, message in (
        ("one", {"split": "test"}, "holds one dataset, not a split 'test'"),
        ("two", {"split": "dev"}, "has no split 'dev'"),
        ("one", {"config": "en"}, r"config: .* has none"),
        ("two", {"revision": "main"}, r"revision: .* has none"),
    ):
        with pytest.raises(LengthenError, match=message):
            read({"kind": "hub", "dataset": str(tmp_path / name), **extra})


def test_a_folder_of_data_files_is_a_dataset(tmp_path):
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "set/train.parquet")
    documents, _ = read({"kind": "hub", "dataset": str(tmp_path / "set")})
    assert [d.text for d in documents] == [r["text"] for r in ROWS]


def test_every_archive_below_a_path_is_a_repository(tmp_path):
    """Source distributions side by side; imported files first inside each."""
    for name in ("one-1.0", "two-2.1"):
        with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as archive:
            add(archive, f"{name}/src/app/a.py", b"from app.z import x\n")
            add(archive, f"{name}/src/app/z.py", b"x = 1\n")
            add(archive, f"{name}/PKG-INFO", b"Metadata-Version: 2.1\n")
    source = {"kind": "repository", "name": "r", "paths": str(tmp_path), "each": True, "order": "dependency"}
    documents, ledger = read(source)
    assert [d.id for d in documents] == ["one-1.0.tar.gz", "two-2.1.tar.gz"]
    wanted = "# one-1.0/src/app/z.py\nx = 1\n\n# one-1.0/src/app/a.py\nfrom app.z import x\n"
    assert documents[0].text == wanted and ledger.drops.by_rule["file_other_type"]["items"] == 2


def test_a_bad_conversation_is_named_by_file_and_line(tmp_path):
    model = model_folder(tmp_path / "model")
    good = {"id": "g", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    for number, (bad, rule) in enumerate((
        ({"id": "b", "messages": [{"role": "user"}]}, "chat_bad_message"),
        ({"id": "b", "messages": [{"role": "user", "content": "a\ud83d"}]}, "broken_text"),
    )):  # fmt: skip
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in (good, good, bad)))
        source = {"kind": "chat", "paths": str(path)}
        with pytest.raises(LengthenError, match=rf"{number}\.jsonl, line 3"):
            run(stage(model, [source]), tmp_path / f"fail{number}")
        result = run(stage(model, [source], on_error="skip"), tmp_path / f"skip{number}")
        assert result.drops[rule]["items"] == 1 and result.counts["documents"] == 2


def corrupt_gz(folder: Path) -> str:
    text = "".join(json.dumps({"text": f"x{random.Random(n).random()}"}) + "\n" for n in range(5000))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress((LINES + text).encode())[:-2000])
    return str(folder / "a.jsonl.gz")


def cut_zst(folder: Path) -> str:
    text = "".join(json.dumps({"text": f"x{random.Random(n).random()}"}) + "\n" for n in range(20_000))
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress((LINES + text).encode())[:-20])
    return str(folder / "a.jsonl.zst")


def cut_line(folder: Path) -> str:
    (folder / "a.jsonl").write_text(LINES + '{"text": "half of a li')
    return str(folder / "a.jsonl")


def wrong_encoding(folder: Path) -> str:
    (folder / "a.jsonl").write_bytes(LINES.encode() + '{"text": "Fluß"}\n'.encode("latin-1") + LINES.encode())
    return str(folder / "a.jsonl")


def missing_field(folder: Path) -> str:
    return str(write_jsonl(folder / "a.jsonl", [*ROWS, {"body": "x"}, {"text": 7}]))


def half_character(folder: Path) -> str:
    (folder / "a.jsonl").write_text(LINES + '{"text": "a \\ud83d b"}\n')
    return str(folder / "a.jsonl")


def too_deep(folder: Path) -> str:
    (folder / "a.jsonl").write_text(LINES + '{"text": ' + "[" * 100_000 + "\n")
    return str(folder / "a.jsonl")


def empty_file(folder: Path) -> str:
    (folder / "a.jsonl").write_text(LINES)
    (folder / "b.jsonl").write_text("")
    return str(folder)


def no_parquet(folder: Path) -> str:
    (folder / "b.parquet").write_bytes(b"PAR1 but not really PAR1")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "make", "where", "rules"),
    [
        ("jsonl", corrupt_gz, r"a\.jsonl\.gz, after \d+ lines", {"broken_file"}),
        ("jsonl", cut_zst, r"a\.jsonl\.zst, after \d+ lines", {"broken_file"}),
        ("jsonl", cut_line, r"a\.jsonl, line 10: it is not JSON.*may be cut off", {"broken_line"}),
        ("jsonl", wrong_encoding, r"a\.jsonl, line 10: it is not utf-8", {"wrong_encoding"}),
        (
            "jsonl",
            missing_field,
            r"a\.jsonl, line 10: there is no 'text' \(it has body\)",
            {"missing_field", "wrong_type"},
        ),
        ("jsonl", half_character, r"a\.jsonl, line 10: 'text' holds half", {"broken_text"}),
        ("jsonl", too_deep, r"a\.jsonl, line 10: it is not JSON", {"broken_line"}),
        ("jsonl", empty_file, r"b\.jsonl: the file is empty", {"empty_file"}),
        ("parquet", no_parquet, r"b\.parquet: it is no parquet file", {"broken_file"}),
    ],
)
def test_broken_input_stops_with_file_and_line_or_is_skipped_and_counted(tmp_path, kind, make, where, rules):
    source = {"kind": kind, "paths": make(tmp_path)}
    with pytest.raises(LengthenError, match=f"(?s){where}.*on_error: skip"):
        read(source)
    documents, ledger = read(source, on_error="skip")
    assert set(ledger.drops.by_rule) == rules
    assert {problem["rule"] for problem in ledger.problems} == rules
    texts = [d.text for d in documents]
    assert (
        all(text.startswith(("text number", "x")) for text in texts) and len(texts) >= 1 and texts[0] == "text number 0"
    )
    if make in (cut_line, too_deep, half_character, missing_field, empty_file, no_parquet):
        assert texts == [row["text"] for row in ROWS]
    if make is wrong_encoding:
        assert len(texts) == 2 * len(ROWS)


def test_text_files_of_another_encoding(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\nder Fluß\n".encode("latin-1"))
    with pytest.raises(LengthenError, match=r"a\.txt, line 2: it is not utf-8"):
        read({"kind": "text", "paths": str(tmp_path)})
    assert read({"kind": "text", "paths": str(tmp_path), "encoding": "latin-1"})[0][0].text == "one\nder Fluß\n"


def test_a_circle_of_links_is_read_once(tmp_path):
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/a.txt").write_text("once")
    (tmp_path / "in/deep/up").symlink_to(tmp_path / "in", target_is_directory=True)
    documents, ledger = read({"kind": "text", "paths": str(tmp_path / "in")})
    assert len(documents) == 1 and ledger.drops.by_rule["link_loop"]["items"] == 1


def test_paths_that_hold_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LengthenError, match=r"sources\.jsonl\.paths: there is no"):
        read({"kind": "jsonl", "name": "jsonl", "paths": str(tmp_path / "gone")})
    with pytest.raises(LengthenError, match="has no files named"):
        read({"kind": "text", "name": "t", "paths": str(tmp_path / "empty")})
    with pytest.raises(LengthenError, match="not fixed by version"):
        read({"kind": "text", "name": "t", "paths": "package:no-such-package"})
    with pytest.raises(LengthenError, match="no Python package 'no_such_thing'"):
        read({"kind": "repository", "name": "r", "paths": "installed:no_such_thing"})


def test_what_was_done_before_a_broken_file_is_kept(tmp_path):
    """The first run stops at the broken file; mended, the second reads only what is missing."""
    model = model_folder(tmp_path / "model")
    good = write_jsonl(tmp_path / "in/a.jsonl", ROWS)
    bad = tmp_path / "in/b.jsonl"
    bad.write_text('{"text": "cut')
    settings = stage(model, [{"kind": "jsonl", "paths": str(tmp_path / "in")}], part_bytes=good.stat().st_size)
    with pytest.raises(LengthenError, match=r"b\.jsonl, line 1"):
        run(settings, tmp_path / "out")
    kept = tmp_path / "out/.work/tokens/00000.json"
    before = kept.stat().st_mtime_ns
    bad.write_text('{"text": "whole again"}\n')
    observed = []
    with pytest.MonkeyPatch.context() as patch:
        import shutil

        patch.setattr(shutil, "rmtree", lambda path, **_: observed.append(kept.stat().st_mtime_ns))
        result = run(settings, tmp_path / "out")
    assert observed[-1] == before and result.counts["documents"] == len(ROWS) + 1


def add(archive: tarfile.TarFile, name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
    archive.addfile(info, io.BytesIO(data))


def test_archives_with_unsafe_paths_and_links(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        add(archive, "pkg/good.py", b"x = 1\n")
        add(archive, "../evil.py", b"x = 2\n")
        add(archive, "/etc/evil.py", b"x = 3\n")
        add(archive, "pkg/link.py", b"", tarfile.SYMTYPE)
    source = {"kind": "repository", "name": "r", "paths": str(tmp_path / "a.tar.gz")}
    with pytest.raises(LengthenError, match=r"member \.\./evil\.py: the path leaves the archive"):
        read(source)
    documents, ledger = read(source, on_error="skip")
    assert documents[0].text == "# pkg/good.py\nx = 1\n"
    assert ledger.drops.by_rule["unsafe_path"]["items"] == 2 and ledger.drops.by_rule["file_link"]["items"] == 1
    assert not list(tmp_path.parent.glob("evil*"))


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tar.gz"])
def test_an_archive_bomb_is_refused(tmp_path, name):
    blob = b"0" * 2**22
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(8):
                archive.writestr(f"{number}.py", blob)
    else:
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            for number in range(8):
                add(archive, f"{number}.py", blob)
    source = {"kind": "repository", "name": "r", "paths": str(tmp_path / name), "max_repository_bytes": 2**23}
    with pytest.raises(LengthenError, match="unpacks to more than 8,388,608 bytes"):
        read(source)
    documents, ledger = read(source, on_error="skip")
    assert not documents and ledger.drops.by_rule["archive_too_large"]["items"] == 1


def test_a_broken_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.py", "x = 1\n")
        archive.writestr("b.py", "y = 1\n" * 1000)
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(b"y = 1\ny = 1", b"z = 1\nz = 1", 1))
    source = {"kind": "repository", "name": "r", "paths": str(tmp_path / "a.zip")}
    with pytest.raises(LengthenError, match="the archive is broken"):
        read(source)
    documents, ledger = read(source, on_error="skip")
    assert documents[0].text == "# a.py\nx = 1\n" and "broken_archive" in ledger.drops.by_rule


A, B = {"kind": "text", "paths": "a"}, {"kind": "jsonl", "paths": "b"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"row_length": 1}, "greater than or equal to 2"),
        ({"sources": [{**A, "share": 0.5}, {**B, "share": 0.4}]}, "add up to 0.9"),
        ({"sources": [{**A, "share": 0.5}, B]}, "some have none"),
        ({"sources": [A, A]}, "two sources are called 'text'"),
        ({"sources": [{"kind": "text", "paths": "a", "piece_length": 8}]}, "piece_length has no meaning"),
        ({"sources": [{**A, "packing": "whole_documents", "piece_length": 48}]}, "does not divide"),
        ({"sources": [{"kind": "text", "paths": "a", "buckets": [{"share": 0.4}]}]}, "buckets add up to 0.4"),
        ({"sources": []}, "at least 1 item"),
        ({"executor": {"type": "slurm"}}, "slurm needs a partition"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(settings, message):
    base = {"row_length": 64, "sources": [{"kind": "text", "paths": "a"}]}
    with pytest.raises(ValueError, match=message):
        PrepareStage.model_validate({**base, **settings})


def test_a_pattern_with_a_slash_speaks_of_the_path(tmp_path):
    """Texts of a package lie beside its manuals, whose names end alike."""
    for name in ("pkg/texts/hamlet.txt", "pkg/texts/more/lear.txt", "pkg/README.txt", "COPYING.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("words")
    source = {"kind": "text", "name": "plays", "paths": [str(tmp_path)]}
    shapes = ("*/texts/*.txt", "*.txt")
    found = {shape: {d.id for d in read({**source, "patterns": [shape]})[0]} for shape in shapes}
    assert found["*/texts/*.txt"] == {"pkg/texts/hamlet.txt", "pkg/texts/more/lear.txt"}
    assert len(found["*.txt"]) == 4
