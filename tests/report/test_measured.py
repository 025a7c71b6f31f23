"""Files of other commands give rows beside the divergences; what they lack gives none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fake_study import fake_run
from vflowopt_search.report.facts import results
from vflowopt_search.report.measured import Measured, accuracy_of, speed_of
from vflowopt_search.report.runs import Run
from vflowopt_search.report.sections import sections
from vflowopt_search.report.words import FOUND


def evaluation(kept: Any, sha256: str | None = None) -> dict[str, Any]:
    result = {"name": "fake", "accuracy": 0.72, "kept": kept, "agreement": 0.8}
    result |= {"strategy_sha256": sha256, "retained": 0.25}
    told = {"unpruned": 0.9, "samples": 80, "metric": "anls", "strategies": [result]}
    told |= {"data": {"name": "qa.jsonl"}}
    return {"format": "vflowopt-evaluation/1", **told}


WHERE = {"device": "GPU X", "dtype": "bfloat16"}


def benchmark(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"format": "vflowopt-benchmark/1", "strategy": "fake", "rows": list(rows)} | WHERE


def row(visual: int, speed_up: float | None, *, ran: bool = True) -> dict[str, Any]:
    return {
        "batch_size": 1,
        "width": 640,
        "height": 480,
        "visual_tokens": visual,
        "unpruned": {"kv_bytes": 4 * 2**20} if ran else None,
        "pruned": {"kv_bytes": 512 * 2**10},
        "first_token_speed_up": None if speed_up is None else {"median": speed_up},
    }


CONDITIONS = (
    "batch size 1, 640 x 480 pixels, 700 visual tokens, GPU X, bfloat16; vision encoder included"
)
SCORED = "80 labelled samples of qa.jsonl, anls"
KEPT = {"value": 0.8, "low": 0.75, "high": 0.85}


def test_accuracy_is_told_of_each_strategy_and_of_the_whole_model() -> None:
    kept = {"accuracy_kept": 0.8, "accuracy_range": (0.75, 0.85)}
    assert accuracy_of(evaluation(KEPT)) == {
        "unpruned": Measured({"accuracy": 0.9, "accuracy_kept": 1.0, "scored": SCORED}),
        "fake": Measured({"accuracy": 0.72, **kept, "scored": SCORED}, None, 0.25),
    }
    assert accuracy_of(evaluation(None))["fake"].values["accuracy_kept"] is None


def test_a_model_that_is_never_right_has_no_accuracy_to_keep() -> None:
    never = accuracy_of(evaluation(None) | {"unpruned": 0.0})
    assert never["unpruned"].values == {
        "accuracy": 0.0,
        "accuracy_kept": None,
        "scored": SCORED,
    }


def test_speed_is_told_of_the_largest_prompt_that_both_could_answer() -> None:
    told = speed_of(benchmark(row(100, 1.5), row(700, 2.5), row(900, 9.0, ran=False)))
    assert told == {
        "unpruned": Measured({"speedup": 1.0, "kv_bytes": 4 * 2**20}),
        "fake": Measured({"speedup": 2.5, "kv_bytes": 512 * 2**10, "conditions": CONDITIONS}),
    }
    assert speed_of(benchmark(row(700, None)))["fake"].values["speedup"] is None


@pytest.mark.parametrize("content", [{}, {"format": "vflowopt-evaluation/2"}, benchmark()])
def test_what_is_not_there_or_of_another_version_gives_no_row(content: dict[str, Any]) -> None:
    assert accuracy_of(content) == {} == speed_of(content)


def test_both_stand_in_the_summary() -> None:
    outcome = fake_run(total=3)
    run = Run(
        outcome.study,
        outcome.best,
        evaluation=evaluation(KEPT),
        benchmark=benchmark(row(700, 2.5)),
    )
    found = next(result for result in results(run) if result.name == FOUND)
    assert (found.accuracy, found.accuracy_kept, found.speedup) == (0.72, 0.8, 2.5)
    assert found.divergence == outcome.divergence
    told = "".join(section.before for section in sections(run, 0))
    for words in ("80.0%", "75.0% to 85.0%", "2.50 x", "524 kB", "4.19 MB"):
        assert words in told
    unpruned = next(result for result in results(run) if result.name == "unpruned")
    assert (unpruned.divergence, unpruned.held_out) == (0.0, None)  # whoever measured it
    assert f"<small>{CONDITIONS}</small>" in told  # in the tile, and below the table
    [below] = [section.after for section in sections(run, 0) if section.key == "comparison"]
    assert f"Time to first token and KV cache: {CONDITIONS}." in below
    assert f"95 % interval 75.0% to 85.0%; {SCORED}" in told  # in the tile
    assert f"Accuracy: {SCORED}." in below


def test_a_model_of_one_image_size_has_conditions_too() -> None:
    one = row(100, 1.5) | {"width": None, "height": None}
    told = speed_of(benchmark(one))["fake"].values["conditions"]
    assert told.startswith("batch size 1, 100 visual tokens, GPU X")


def test_what_was_measured_of_another_strategy_of_this_name_is_left_out() -> None:
    """More trials found another best; its study, and so its name, stayed the same."""
    outcome = fake_run(total=3)
    assert outcome.best is not None
    for sha256, accuracy, speedup in (
        (outcome.best.content_sha256(), 0.72, 2.5),
        ("0" * 16, None, None),
    ):
        run = Run(
            outcome.study,
            outcome.best,
            evaluation=evaluation(KEPT, sha256),
            benchmark=benchmark(row(700, 2.5)) | {"strategy_sha256": sha256},
        )
        told = {result.name: result for result in results(run)}
        assert {"unpruned", FOUND} <= set(told) and "fake" not in told
        assert (told[FOUND].accuracy, told[FOUND].speedup) == (accuracy, speedup)
        assert told["unpruned"].accuracy == 0.9


@pytest.mark.parametrize(("retained", "accuracy"), [(0.255, 0.6), (0.5, None)])
def test_a_plain_strategy_at_another_budget_is_left_out(
    retained: float, accuracy: float | None
) -> None:
    outcome = fake_run(total=3)
    plain = {"name": "random", "accuracy": 0.6, "kept": None, "retained": retained}
    measured = evaluation(KEPT) | {"strategies": [plain]}
    run = Run(outcome.study, outcome.best, {"random": 2.0}, evaluation=measured)
    told = next(result for result in results(run) if result.name == "random")
    assert (told.retained, told.accuracy, told.divergence) == (0.25, accuracy, 2.0)
    # nothing else has its name: then it stands alone, at its own budget
    alone = Run(outcome.study, outcome.best, evaluation=measured)
    told = next(result for result in results(alone) if result.name == "random")
    assert (told.retained, told.accuracy) == (retained, 0.6)
