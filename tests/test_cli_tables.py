"""Printed tables: legends for their marks, intervals as `x to y`, headings that say what is in."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console, RenderableType

from vflowopt_search.benchmark.records import Benchmark, Row, Side, Spread
from vflowopt_search.cli import comparison
from vflowopt_search.cli.bench_table import rendered
from vflowopt_search.cli.console import interval, table
from vflowopt_search.cli.evaluation_table import by_group, compared, explained, groups_explained
from vflowopt_search.cli.run import _print
from vflowopt_search.cli.summary import Summary
from vflowopt_search.cli.validation_table import caution, correlations, picks, sentence
from vflowopt_search.evaluate.evaluation import Evaluation, Group, Result
from vflowopt_search.evaluate.prediction import Prediction
from vflowopt_search.evaluate.statistics import Interval, PairedTest
from vflowopt_search.evaluate.validation import Point, Validation


def printed(*parts: RenderableType, width: int = 110) -> str:
    """What is seen, without blanks at the ends of lines."""
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def evaluation(*, high: float = 0.97, unpruned: float = 0.9, groups: int = 2) -> Evaluation:
    kept = Interval(0.9, 0.85, high) if unpruned else None
    kinds = tuple(Group(f"kind {n}", 12, 0.9, 0.8, kept) for n in range(groups))
    worst = "kind 1" if groups > 1 else None
    test = PairedTest("sign flips", 0.03)
    result = Result("mine", "abc", 0.1, 0.81, kept, test, 0.88, 4.9, kinds, worst)
    return Evaluation("exact_match", 24, 8, unpruned, (result,), 0, {}, {}, {})


def test_an_evaluation_says_what_its_figures_are() -> None:
    seen = printed(compared(evaluation()))
    assert "95 % interval" in seen and "of accuracy kept" in seen
    assert "speed without" in seen and "vision encoder" in seen
    assert "85.0% to 97.0%" in seen
    told = "\n".join(explained(evaluation()))
    assert "bootstrap interval over images" in told
    assert "p: chance of a difference at least as large if pruning changed nothing (sign f" in told
    assert "without the vision encoder; timed once, in passing: `bench` measures it prope" in told
    assert "above 100 %" not in told and "empty" not in told and "random" not in told


@pytest.mark.parametrize(
    ("speed", "told"), [(0.953, "1.0x"), (1.18, "1.2x"), (8.94, "9x"), (10.5, "10x"), (None, "")]
)
def test_a_speed_timed_in_passing_has_few_digits(speed: float | None, told: str) -> None:
    timed = dataclasses.replace(evaluation().results[0], speed=speed)
    seen = printed(compared(dataclasses.replace(evaluation(), results=(timed,))))
    (line,) = (line for line in seen.splitlines() if line.startswith("mine"))
    assert line.partition("88.0%")[2].strip() == told


@pytest.mark.parametrize("name", ["random", "random:1"])
def test_a_random_baseline_is_said_to_be_one_draw(name: str) -> None:
    drawn = dataclasses.replace(evaluation().results[0], name=name)
    told = "\n".join(explained(dataclasses.replace(evaluation(), results=(drawn,))))
    assert "random: one draw, the same for all images with as many tokens; baseline:ran" in told
    rows = [comparison.Row("found", 0.1, 0.04), comparison.Row("random", 0.1, 0.4)]
    assert any(line.startswith("random: one draw") for line in comparison.explained(rows, "kl", 1))
    assert "random" not in "".join(comparison.explained(rows[:1], "kl", 1))


def test_of_several_random_draws_the_spread_is_told() -> None:
    mine = evaluation().results[0]
    draws = [
        dataclasses.replace(mine, name=name, accuracy=accuracy)
        for name, accuracy in (("random", 0.5), ("random:1", 0.6), ("random:2", 0.4))
    ]
    told = "\n".join(explained(dataclasses.replace(evaluation(), results=(mine, *draws))))
    assert (
        "random: 3 draws, each the same for all images with as many tokens; accuracy 40.0% to"
        in (told)
    )
    assert "60.0%, mean 50.0%; baseline:random:1-8 asks for eight" in told
    assert "one draw" not in told


def test_who_has_many_random_draws_is_not_told_to_ask_for_fewer() -> None:
    drawn = [dataclasses.replace(evaluation().results[0], name=f"random:{n}") for n in range(8)]
    told = "\n".join(explained(dataclasses.replace(evaluation(), results=tuple(drawn))))
    assert "random: 8 draws" in told and "baseline:random" not in told


def test_more_than_all_is_explained_where_it_occurs() -> None:
    assert "in some bootstrap resamples the pruned model scores higher than the unpruned one" in (
        "\n".join(explained(evaluation(high=1.02)))
    )


def test_a_model_that_is_never_right_keeps_nothing_and_is_told_so() -> None:
    never = evaluation(unpruned=0.0)
    (line,) = (line for line in printed(compared(never)).splitlines() if "unpruned" in line)
    assert line.split() == ["unpruned", "100.0%", "0.0%", "100.0%", "1.0x"]
    assert "accuracy kept is empty: the unpruned model got every answer wrong; try another" in (
        "\n".join(explained(never))
    )


def test_the_star_of_the_worst_group_has_a_legend() -> None:
    seen = printed(by_group(evaluation()))
    assert re.search(r"kind 1 +12 +90.0% +\*80.0%", seen)
    assert seen.count("*") == 1
    told = groups_explained(evaluation())
    assert told[1] == (
        "* the group that keeps least of its accuracy, among groups of 10 or more samples"
    )
    few, alone = evaluation(), evaluation(groups=1)
    assert "*" not in printed(by_group(alone))
    assert not any(line.startswith("*") for line in groups_explained(alone))
    assert len(groups_explained(alone)) == 1
    small = dataclasses.replace(few.results[0], worst_group=None)
    told = groups_explained(dataclasses.replace(few, results=(small,)))
    assert "no group is marked as the worst: none of 10 samples or more has an accuracy" in told[1]


def test_groups_that_are_not_shown_are_told() -> None:
    many = evaluation(groups=57)
    assert printed(by_group(many)).count("kind ") == 40
    assert "40 of 57 groups: those of which mine keeps least; all are in the file" in (
        groups_explained(many)
    )


def validation(**changed: Any) -> Validation:
    each = Interval(-0.195, -0.98, 0.42)
    sizes = (16, 30, 64, 128, 256)
    found = tuple(
        Prediction(name, size, each, each, Interval(0.905, 0.9, 1.0))
        for name in ("answer_total_variation", "flow")
        for size in sizes
    )
    points = tuple(Point(f"trial {n}", "along", {}, 0.8, 0.9) for n in range(60))
    usual = Validation("exact_match", 256, 600, 0.9, points, found, 1, {})
    return dataclasses.replace(usual, **changed)


def test_a_correlation_has_a_readable_interval_under_a_heading_that_says_what_it_is() -> None:
    lines = printed(correlations(validation())).splitlines()
    assert lines[0].split() == ["correlation"] * 5
    assert lines[1].split()[:3] == ["divergence", "16", "samples"]
    assert lines[2].split()[:2] == ["answer_total_variation", "-0.20"]
    assert lines[3].split()[:6] == ["-0.98", "to", "0.42"] * 2
    assert all(len(line) <= 110 for line in lines)
    assert printed(picks(validation())).split()[:3] == ["pick", "over", "best"]


def test_a_validation_says_how_much_of_the_accuracy_is_kept() -> None:
    told = sentence(validation())
    assert "unpruned 90.0%, of which the strategies keep 90.0% / 90.0% / 90.0% (worst / m" in told
    never = tuple(Point(f"trial {n}", "along", {}, 0.0, None) for n in range(3))
    told = sentence(validation(points=never, unpruned=0.0, predictions=()))
    assert told.endswith("600 questions about other images, exact_match: unpruned 0.0%")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, ""),
        ({"points": validation().points[:19]}, "of only 19 strategies the intervals are wide"),
        ({"calibration_samples": 8}, "of only 8 calibration samples the intervals"),
        ({"questions": 24}, "of only 24 questions the intervals are wide, and which divergence is"),
        (
            {"questions": 24, "calibration_samples": 8},
            "of only 8 calibration samples, 24 questions the intervals are wide",
        ),
        ({"predictions": ()}, "all strategies got as many answers right, so that there is no or"),
        ({"unpruned": 0.0}, "the unpruned model got every answer wrong, so that there is no accu"),
    ],
)
def test_few_strategies_or_samples_are_cautioned_about(changed: Any, told: str) -> None:
    line = caution(validation(**changed))
    assert told in line
    assert bool(line) == bool(changed) and "\n" not in line
    assert not line or "with --" in line or "try another --metric" in line


def benchmark() -> Benchmark:
    some = Spread(low=0.435, median=0.459, high=0.461)
    pace = Spread(low=18.6, median=19.5, high=19.9)
    gain = Spread(low=1.14, median=1.18, high=1.94)
    side = Side(
        visual_per_layer=(4,),
        first_token_s=some,
        encoding_s=some,
        decoder_s=some,
        decode_tokens_per_s=pace,
        end_to_end_s=some,
        kv_bytes=1000,
        peak_bytes=None,
        prefill_flops=None,
    )
    empty: dict[str, Any] = dict.fromkeys(Row.model_fields)
    counts = {"batch_size": 1, "visual_tokens": 4, "text_tokens": 2, "share_reached": 0.24}
    row = Row(**(empty | counts | {"unpruned": side, "pruned": side, "first_token_speed_up": gain}))
    words = ("strategy", "model", "model_type", "prompt", "device", "dtype", "attention", "created")
    numbers = ("threads", "weight_bytes", "new_tokens", "repeats")
    more: dict[str, Any] = {"random_weights": False, "versions": {}, "rows": (row,)}
    more |= dict.fromkeys(words, "x") | dict.fromkeys(numbers, 3)
    return Benchmark(**more)


def test_a_benchmark_has_readable_quartiles_and_a_legend() -> None:
    seen = printed(*rendered(benchmark()))
    assert "459 ms (435 to 461)" in seen
    assert "19.5/s (18.6 to 19.9)" in seen
    assert "1.18x (1.14 to 1.94)" in seen
    assert ".." not in seen
    assert "times: median of all runs (quartiles)" in seen
    assert "gain: of the two sides that ran one after the other; above 1x the pruned" in seen
    assert "24% of what FLOPs allow" in seen and "\nwhat FLOPs allow: " in seen


def test_a_search_says_what_its_figures_are() -> None:
    rows = [comparison.Row("found", 0.1, 0.04, 0.16)]
    told = comparison.explained(rows, "total_variation", 16)
    assert told[1].startswith("divergence: total_variation, mean over the 16 samples of the search")
    assert told[2] == "held out: the same over samples that no trial saw"
    labelled = comparison.explained([comparison.Row("found", 0.1, 0.04, None, 0.8, 0.9)], "kl", 1)
    assert not any(line.startswith("held out") for line in labelled)
    assert labelled[-1].startswith("accuracy: exact match on held-out questions")


def test_intervals_and_tables_of_them() -> None:
    assert interval(-0.98, 0.42, ".2f") == "-0.98 to 0.42"
    made = table(("name", "of\nfigure"), [("a", "-0.1 to 0.2"), ("b", "*33.3%"), ("c", "<0.001")])
    assert [column.justify for column in made.columns] == ["left", "right"]
    assert made.columns[0].header == "\nname"
    assert table(("name",), [("to x-ray",)]).columns[0].justify == "left"


def test_a_plain_strategy_that_does_better_than_the_one_found_is_told() -> None:
    whole = comparison.Row("unpruned", 1.0, 0.0, 0.0)
    found, random = comparison.Row("found", 0.1, 0.2, 0.5), comparison.Row("random", 0.1, 0.4, 0.6)
    rows = [whole, found, random]
    assert comparison.caution(rows) == ""
    assert comparison.caution(rows[:1]) == ""
    told = comparison.caution([*rows, comparison.Row("uniform", 0.1, 0.3, 0.25)])
    assert "uniform on held-out samples (0.25, found 0.5)" in told and "random" not in told
    told = comparison.caution([*rows, comparison.Row("uniform", 0.1, 0.1)])
    assert "uniform (0.1, found 0.2)" in told


def test_what_was_found_is_not_beaten_by_rounding() -> None:
    """It may be a baseline under another name, measured in other batches."""
    rows = [comparison.Row("found", 0.1, 0.2), comparison.Row("attention", 0.1, 0.2 * (1 - 1e-7))]
    assert comparison.caution(rows) == ""


def test_search_prints_that_caution_below_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = (comparison.Row("found", 0.1, 0.2), comparison.Row("uniform", 0.1, 0.1))
    summary = cast(
        Summary,
        SimpleNamespace(
            sentence=lambda asked: f"run: 1 of {asked} trials",
            recipe={"metric": "flow"},
            calibration={"samples": 8},
            files={},
            remarks=list,
        ),
    )
    _print(summary, rows, 1, as_json=False)
    assert (
        "caution: baselines are closer to the unpruned model than the strategy found: uniform"
        in (capsys.readouterr().out)
    )
