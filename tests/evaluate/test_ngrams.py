"""N-gram files of samples find training texts that hold them."""

from __future__ import annotations

from lengthen.common.manifest import StageContext
from lengthen.data.decontaminate import load_ngrams
from lengthen.evaluate.run import make_plan
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
