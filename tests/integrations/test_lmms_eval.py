"""Stock lmms-eval runs our model: its scores and answers are ours. `make lmms-eval` runs this."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from vflowopt_search import testbed
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.deploy import pruned
from vflowopt_search.errors import VFlowOptError
from vflowopt_search.evaluate.answers import Asking
from vflowopt_search.evaluate.evaluation import UNPRUNED, evaluate
from vflowopt_search.strategy import Strategy
from vflowopt_search.strategy_hub import STRATEGY_FILE
from vflowopt_search.testbed.data import evaluation_dataset

pytestmark = [pytest.mark.lmms_eval, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent
FOUND = ROOT / "studies" / "quickstart" / "strategy.json"
QUESTIONS = 120
TASK, CHOICE_TASK = "vflowopt_testbed", "vflowopt_testbed_choice"


@dataclass(frozen=True)
class Run:
    """What lmms-eval wrote."""

    metrics: dict[str, Any]
    throughput: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def answers(self) -> list[str]:
        """The model's words, by question."""
        return [row["filtered_resps"] for row in self.rows]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    maker = ROOT / "examples" / "lmms_eval" / "make_task.py"
    command = [sys.executable, maker, folder, "--questions", str(QUESTIONS)]
    subprocess.run(list(map(str, command)), check=True, cwd=ROOT)
    return folder


@dataclass(frozen=True)
class Ours:
    """Our own scores and answers."""

    accuracy: float
    answers: list[str]


@pytest.fixture(scope="module")
def ours() -> dict[str, Ours]:
    """Our own evaluation of the very same questions."""
    samples = [
        Sample(row["id"], row["question"], (row["image"],), answer=row["answer"])
        for row in evaluation_dataset(QUESTIONS)
    ]
    asking = Asking(testbed.load_model(), testbed.load_processor(), batch_size=24)
    measured = evaluate(asking, samples, {"pruned": Strategy.load(FOUND)})
    answers = {name: [a.text for a in given] for name, given in measured.answers.items()}
    return {
        "pruned": Ours(measured.results[0].accuracy, answers["pruned"]),
        "whole": Ours(measured.unpruned, answers[UNPRUNED]),
    }


def lmms_eval(tasks: Path, output: Path, task: str, model_args: str, *more: str) -> Run:
    """Run the program as a user does, and read what it wrote."""
    command = [Path(sys.executable).with_name("lmms-eval"), "eval", "--model", "vflowopt"]
    command += ["--model_args", model_args, "--include_path", tasks, "--tasks", task]
    command += ["--output_path", output, "--log_samples", *more]
    ran = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    results = sorted(output.rglob("*_results.json"))
    assert ran.returncode == 0 and results, f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
    content: dict[str, Any] = json.loads(results[-1].read_text())
    [samples] = output.rglob(f"*_samples_{task}.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return Run(
        content["results"][task],
        content.get("throughput", {}),
        sorted(rows, key=lambda r: r["doc_id"]),
    )


def test_scores_and_answers_under_a_strategy_are_ours(
    tasks: Path, ours: dict[str, Ours], tmp_path: Path
) -> None:
    args = f"pretrained=testbed,strategy={FOUND}"
    run = lmms_eval(tasks, tmp_path, TASK, args, "--batch_size", "16")
    assert run.answers == ours["pruned"].answers
    assert run.metrics["exact_match,none"] == pytest.approx(ours["pruned"].accuracy)
    # tokens really left, as many as the strategy says
    assert run.throughput["avg_mean_retained"] == pytest.approx(0.10, abs=0.005)
    assert run.throughput["avg_visual_tokens"] == 259


def test_scores_and_answers_of_the_whole_model_are_ours(
    tasks: Path, ours: dict[str, Ours], tmp_path: Path
) -> None:
    args = "pretrained=testbed,strategy=none"
    run = lmms_eval(tasks, tmp_path, TASK, args, "--batch_size", "5", "--force_simple")
    assert run.answers == ours["whole"].answers
    assert run.metrics["exact_match,none"] == pytest.approx(ours["whole"].accuracy)
    assert run.throughput["avg_mean_retained"] == 1
    assert ours["whole"].accuracy > ours["pruned"].accuracy  # the two differ


def test_a_folder_brings_its_strategy_along(
    tasks: Path, ours: dict[str, Ours], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(testbed.WEIGHTS_FOLDER, checkpoint)
    shutil.copy(FOUND, checkpoint / STRATEGY_FILE)
    args = f"pretrained={checkpoint},dtype=float32"
    more = ("--batch_size", "8", "--limit", "24")
    run = lmms_eval(tasks, tmp_path / "out", TASK, args, *more)
    assert run.answers == ours["pruned"].answers[:24]
    assert run.throughput["avg_mean_retained"] < 0.11


def test_choices_are_scored_by_their_likelihood(tasks: Path, tmp_path: Path) -> None:
    args = f"pretrained=testbed,strategy={FOUND}"
    more = ("--batch_size", "6", "--force_simple")
    run = lmms_eval(tasks, tmp_path, CHOICE_TASK, args, *more)
    closed = [row for row in evaluation_dataset(QUESTIONS) if row["answer"] in ("yes", "no")]
    model, processor = testbed.load_model(), testbed.load_processor()
    inputs = encode(
        processor, [Sample(row["id"], row["question"], (row["image"],)) for row in closed]
    )
    with torch.no_grad(), pruned(model, FOUND):
        logits_BV = model(**inputs, logits_to_keep=1).logits[:, -1].float()
    # the answer's words are one token each
    words = processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    nll_BC = -logits_BV.log_softmax(-1)[:, words]
    found = torch.tensor([[float(pair[0]) for pair in row["filtered_resps"]] for row in run.rows])
    torch.testing.assert_close(found, nll_BC, rtol=0, atol=1e-5)
    right = [
        nll_C.argmin() == (row["answer"] == "no") for nll_C, row in zip(nll_BC, closed, strict=True)
    ]
    assert run.metrics["acc,none"] == pytest.approx(sum(map(int, right)) / len(closed))
    assert run.metrics["acc,none"] > 0.5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"pretrained": "testbed", "strategie": "x"}, "model_args names strategie"),
        ({"pretrained": "testbed"}, f"holds no {STRATEGY_FILE}"),
        ({"pretrained": "testbed", "strategy": "nowhere.json"}, "cannot be read"),
        ({"pretrained": "testbed", "strategy": "none", "batch_size": "auto"}, "batch_size is"),
        ({"pretrained": "./nowhere", "strategy": "none"}, "does not exist"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    from lmms_eval.models import get_model

    with pytest.raises(VFlowOptError, match=sentence):
        get_model("vflowopt")(**arguments)


@pytest.mark.filterwarnings("ignore")
def test_several_rounds_are_refused() -> None:
    from lmms_eval.models import get_model

    model = get_model("vflowopt")(pretrained="testbed", strategy="none")
    with pytest.raises(VFlowOptError, match="several rounds"):
        model.generate_until_multi_round([])
