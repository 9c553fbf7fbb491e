"""N-gram files of samples find training texts that hold them."""

from __future__ import annotations

from lengthen.common.manifest import StageContext
from lengthen.data.decontaminate import load_ngrams
from lengthen.evaluate.run import make_plan
from lengthen.evaluate.short.instructions import INSTRUCTIONS
from lengthen.recipe.stages.evaluate import EvaluateStage


def test_a_training_text_that_holds_a_sample_is_found(model_folder, tmp_path):
    source = tmp_path / "text.txt"
    source.write_text(" ".join(f"Crate {i} of the red barn went to house {i * 7 % 90} by boat." for i in range(200)))
    settings = EvaluateStage(model=str(model_folder), haystack=str(source), lengths=[512], samples=3)
    plan = make_plan(settings, StageContext(tmp_path / "stage"))
    grams = load_ngrams([str(tmp_path / "stage" / "ngrams")])
    (cell,) = plan.cells
    for sample in cell.samples:
        # As it may stand in training data: other case and spacing, in the middle of something else.
        words = sample.user.split()
        assert grams.hits("Before it. " + "  ".join(words[20:60]).upper() + " After it.") > 10
    assert grams.hits("Nothing of this was ever asked in any test, however long one looks for it there.") == 0
    off = make_plan(settings.model_copy(update={"ngrams": False}), StageContext(tmp_path / "off"))
    assert off.cells and not (tmp_path / "off" / "ngrams").exists()


def test_texts_that_are_measured_are_found_too(model_folder, tmp_path):
    documents = tmp_path / "documents"
    documents.mkdir()
    for i in range(2):
        (documents / f"{i}.txt").write_text(
            " ".join(f"Barge {n} of river {i} carried {n * 13 % 97} sacks past lock {n % 11}." for n in range(200))
        )
    perplexity = {"suite": "perplexity", "options": {"documents": str(documents), "count": 2}, "lengths": [300, 600]}
    settings = EvaluateStage.model_validate(
        {"model": str(model_folder), "suites": [perplexity, {"suite": "short", "tasks": ["instructions"]}]}
    )
    make_plan(settings, StageContext(tmp_path / "stage"))
    folder = tmp_path / "stage" / "ngrams"
    assert [p.name.rsplit("-", 1)[0] for p in sorted(folder.iterdir())] == [
        "perplexity-at-300", "perplexity-at-600", "short-instructions"
    ]  # fmt: skip
    grams = load_ngrams([str(folder)])
    for i in range(2):
        words = (documents / f"{i}.txt").read_text().split()
        assert grams.hits(" ".join(words[40:80])) > 10
        assert grams.hits(" ".join(words[-60:])) == 0, "what lies beyond the length is not measured"
    asked = max((item.text for item in INSTRUCTIONS), key=lambda text: len(text.split()))
    assert grams.hits(f"He said: {asked}")
    make_plan(settings.model_copy(update={"ngrams": False}), StageContext(tmp_path / "off"))
    assert not (tmp_path / "off" / "ngrams").exists()
