"""Both back-ends on one model: in-process, and `transformers serve` on loopback."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from lengthen.common.files import read_json_lines
from lengthen.common.manifest import StageContext
from lengthen.evaluate.run import evaluate
from lengthen.recipe.stages.evaluate import EvaluateStage
from tests.conftest import make_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")),
        reason="transformers serve needs fastapi and uvicorn",
    ),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(model folder, address) of a running server."""
    folder = make_model(tmp_path_factory.mktemp("model"), window=4096)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--port", str(port),
               "--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]  # fmt: skip
    log = tmp_path_factory.mktemp("log") / "serve.log"
    process = subprocess.Popen(
        command, stdout=log.open("wb"), stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    try:
        for _ in range(600):
            if process.poll() is not None:
                pytest.fail(f"transformers serve ended: {log.read_text()[-2000:]}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield folder, f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def test_both_back_ends_give_the_same_answers_and_scores(served, tmp_path):
    folder, address = served
    prose = tmp_path / "prose.txt"
    prose.write_text(" ".join(f"Crate {i} went to house {i * 7 % 90} and nobody has asked for it." for i in range(400)))
    common = {"haystack": str(prose), "lengths": [512, 1024], "samples": 3, "arm": "same"}
    outputs = []
    for name, model in (
        ("local", {"model": str(folder), "dtype": "float32"}),
        ("served", {"model": f"{address}#{folder}", "tokenizer": str(folder), "endpoint": {"concurrency": 2}}),
    ):
        ctx = StageContext(tmp_path / name)
        result = evaluate(EvaluateStage.model_validate({**common, **model}), ctx)
        assert result.counts["samples"] == 6 and result.counts["errors"] == 0
        rows = sorted(read_json_lines(ctx.folder / "predictions.jsonl"), key=lambda r: r["id"])
        outputs.append([(r["id"], r["output"], r["prompt_tokens"], r["score"]) for r in rows])
    assert outputs[0] == outputs[1]
