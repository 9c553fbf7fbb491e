"""The report stage and the comparison of runs, on run folders in the documented schema."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from html.parser import HTMLParser

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.report import ReportStage
from lengthen.report.run import write_comparison, write_report
from tests.report.folders import SKILL, write_evaluation, write_growth, write_run, write_training

VOID = {"meta", "link", "br", "img", "hr", "input", "col"}


class Page(HTMLParser):
    """Checks nesting, and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def reported(tmp_path_factory, model_folder):
    run = write_run(tmp_path_factory.mktemp("runs") / "quickstart", model_folder)
    write_growth(run)
    stages = run / "stages"
    settings = ReportStage(
        title="Quick <start>",
        model=str(stages / "train"),
        evaluations=[{"label": arm, "run": str(stages / f"measure-{arm}")} for arm in SKILL],
        train=[str(stages / "train")],
        data=[str(stages / "prepare")],
        self_lengthen=[str(stages / "self-lengthen")],
    )
    folder = stages / "report"
    result = write_report(settings, StageContext(folder, recipe="quickstart", stage="report"))
    return folder, result


def test_page_is_one_offline_file_without_scripts(reported):
    folder, _ = reported
    page = Page((folder / "report.html").read_text())
    names = {tag for tag, _ in page.tags}
    assert "script" not in names and "link" not in names and "img" not in names and "iframe" not in names
    for _, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("href", "src", "xlink:href"):
                assert value.startswith(("#", "data:text/csv")), value
    assert (
        "@import" not in (folder / "report.html").read_text()
        and "@font-face" not in (folder / "report.html").read_text()
    )


def test_page_escapes_what_models_write(reported):
    html = (reported[0] / "report.html").read_text()
    assert "Quick &lt;start&gt;" in html and "<b>whales</b>" not in html and "&lt;b&gt;whales&lt;/b&gt;" in html


def test_page_holds_every_part(reported):
    folder, result = reported
    page = Page((folder / "report.html").read_text())
    for part in ("YaRN, untrained", "effective", "too short", "9,000", "4.6 GiB", "loop", "median words", "abc123",
                 "quickstart against as-is", "32K is beyond", "What is the number?",
                 "cut by the token limit"):  # fmt: skip
        assert part.lower() in page.text.lower(), part
    assert result.figures["headline"] in page.text
    # Two arms, three maps, one curve, one loss, two growth pictures.
    assert sum(tag == "svg" for tag, _ in page.tags) == 7


def test_examples_of_refusals_belong_to_their_role_and_reason(reported):
    """The least reason beside the least text would be an example of nothing."""
    folder, _ = reported
    html = (folder / "report.html").read_text()
    rows = [Page(f"<table>{row}</table>").text for row in re.findall(r"<tr>.*?</tr>", html, re.DOTALL)]
    rows = {(words[1], words[2]): text for text in rows if (words := text.split())[:1] == ["1"] and len(words) > 5}
    answers, extensions = rows["response", "loop"], rows["extension", "loop"]
    assert "61 words copied text Zebras" in answers and "98 words copied text Anchors" in answers
    assert "33%" in answers and "Boats" not in answers and "77 words copied text Boats" in extensions
    # Of the extensions i1, i3 and i5 are not kept, i3 as a second one of its instruction.
    left = [line.split("|")[2:5] for line in (folder / "report.md").read_text().splitlines() if "not_selected" in line]
    assert left == [[" extension ", " not_selected ", " 2 "], [" response ", " not_selected ", " 2 "]]
    line = next(line for line in (folder / "report.md").read_text().splitlines() if "| response | loop |" in line)
    assert line.endswith("| 61 words copied: “Zebras \\| walk.” |")


def test_headline_has_numbers_with_interval(reported):
    assert re.fullmatch(
        r"At 32K tokens it scores 95% on the needle test \(95% interval \d+–100%, 20 samples\); "
        r"as it was 0%, with untrained YaRN \d+%\.",
        reported[1].figures["headline"],
    )


def test_every_picture_has_a_csv_with_its_numbers(reported):
    pictures = reported[0] / "pictures"
    assert {p.stem for p in pictures.glob("*.svg")} == {p.stem for p in pictures.glob("*.csv")}
    rows = list(csv.DictReader(io.StringIO((pictures / "curve-needle.csv").read_text())))
    assert {(r["arm"], r["length"], r["n"]) for r in rows} >= {("as-is", "32768", "20"), ("quickstart", "4096", "20")}
    depth = list(csv.DictReader(io.StringIO((pictures / "depth-needle-needle-as-is.csv").read_text())))
    assert sum(int(r["samples"]) for r in depth) == 80


def test_summary_has_the_one_shape_of_evidence(reported):
    found = json.loads((reported[0] / "summary.json").read_text())
    assert {"machine", "versions", "date", "commit", "command", "seed", "rows"} <= set(found)
    assert found["seed"] == 7
    needle = [r for r in found["rows"] if r["task"] == "needle"]
    assert len(needle) == 12
    for r in needle:
        assert isinstance(r["length"], int) and 0 <= r["low"] <= r["score"] <= r["high"] <= 1 and r["n"] == 20
        assert r["recipe"] == "quickstart" and r["arm"] in SKILL and r["model"]
    assert {"arm": "train", "task": "time", "unit": "minutes"}.items() <= next(
        r for r in found["rows"] if r["task"] == "time" and r["arm"] == "train"
    ).items()


def test_published_model_loads_and_its_card_tells_the_figures(reported, model_folder):
    from huggingface_hub import ModelCard
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = reported[0] / "model"
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and card.data.license == "apache-2.0"
    assert {round(r.metric_value) for r in card.data.eval_results} >= {95, 100}
    assert "At 32K tokens it scores 95%" in card.text and "apply_chat_template" in card.text
    AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    weights = "model.safetensors"
    assert os.stat(folder / weights).st_ino == os.stat(model_folder / weights).st_ino, "hard link, not a copy"
    assert not (model_folder / "README.md").exists()


def test_same_inputs_give_the_same_page(reported, tmp_path):
    folder = reported[0]
    first = (folder / "report.html").read_bytes()
    stages = folder.parent
    settings = ReportStage(
        title="Quick <start>",
        evaluations=[{"label": arm, "run": str(stages / f"measure-{arm}")} for arm in SKILL],
        train=[str(stages / "train")], data=[str(stages / "prepare")], self_lengthen=[str(stages / "self-lengthen")],
    )  # fmt: skip
    write_report(settings, StageContext(folder, recipe="quickstart", stage="report"))
    assert (folder / "report.html").read_bytes() == first


def test_sections_without_data_are_left_out(tmp_path):
    run = tmp_path / "train-only"
    write_training(run, steps=5)
    folder = run / "stages" / "report"
    result = write_report(ReportStage(train=[str(run / "stages/train")]), StageContext(folder, recipe="train-only"))
    page = Page((folder / "report.html").read_text())
    assert "the loss went from" in result.figures["headline"]
    for absent in ("Scores by length", "Failures to read", "Growth of what", "Other models", "Left out"):
        assert absent not in page.text
    assert not (folder / "model").exists()


def test_comparison_of_two_runs_is_paired(tmp_path):
    for name, arm in (("before", "as-is"), ("after", "quickstart")):
        write_evaluation(tmp_path / name, arm)
    page = write_comparison([tmp_path / "before", tmp_path / "after"], tmp_path / "out")
    text = Page(page.read_text()).text
    assert "quickstart against as-is" in text and "Paired" in text
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]
    assert {r["arm"] for r in rows if r["task"] == "needle"} == {"as-is", "quickstart"}
    assert (tmp_path / "out" / "report.md").read_text().count("| quickstart against as-is |") == 4


def test_runs_whose_arms_have_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("before", "after"):
        write_evaluation(tmp_path / name, "quickstart")
    page = write_comparison([tmp_path / "before", tmp_path / "after"], tmp_path / "out")
    assert "after against before" in Page(page.read_text()).text


def test_a_table_over_many_runs_names_time_and_tokens_by_arm(tmp_path):
    """One folder an arm, all with stages of the same names: an experiment's table."""
    for arm in SKILL:
        write_evaluation(tmp_path / f"bakeoff-{arm}", arm)
        write_training(tmp_path / f"bakeoff-{arm}")
    write_comparison([tmp_path / f"bakeoff-{arm}" for arm in SKILL], tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]
    assert [r["arm"] for r in rows if r["task"] == "needle" and r["length"] == 16384] == list(SKILL)
    assert {r["recipe"] for r in rows if r["task"] == "needle"} == {f"bakeoff-{arm}" for arm in SKILL}
    trained = {r["arm"]: r["value"] for r in rows if r["task"] == "training tokens"}
    assert trained == {f"{arm}: train": 204_800 for arm in SKILL}
    assert {f"{arm}: measure-{arm}" for arm in SKILL} <= {r["arm"] for r in rows if r["task"] == "time"}


def test_one_run_with_all_its_arms(tmp_path):
    write_run(tmp_path / "quickstart")
    page = write_comparison([tmp_path / "quickstart"], tmp_path / "out")
    assert "quickstart against yarn-untrained" in Page(page.read_text()).text


def test_put_aside_and_unfinished_stages_do_not_count(tmp_path):
    run = write_run(tmp_path / "quickstart")
    aside = run / "stages" / "train.old-1"
    aside.mkdir()
    manifest = json.loads((run / "stages/train/manifest.json").read_text())
    (aside / "manifest.json").write_text(json.dumps(manifest))
    running = run / "stages" / "prepare" / "manifest.json"
    running.write_text(json.dumps({**json.loads(running.read_text()), "status": "running"}))
    write_comparison([run], tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]
    assert [r["arm"] for r in rows if r["task"] == "time"] == [
        "measure-as-is", "measure-yarn-untrained", "train", "measure-quickstart",
    ]  # fmt: skip


def test_unfinished_evaluation_is_named(tmp_path):
    write_training(tmp_path / "run")
    with pytest.raises(LengthenError, match="no finished evaluation"):
        write_comparison([tmp_path / "run"], tmp_path / "out")
    settings = ReportStage(evaluations=[{"label": "x", "run": str(tmp_path / "run/stages/train")}])
    with pytest.raises(LengthenError, match=r"scores\.json"):
        write_report(settings, StageContext(tmp_path / "run/stages/report"))


def test_labels_must_differ():
    with pytest.raises(ValueError, match="labelled 'a'"):
        ReportStage(evaluations=[{"label": "a", "run": "@x"}, {"label": "a", "run": "@y"}])
