"""Runs are compared where they measured the same, by what each of them found."""

from __future__ import annotations

import optuna
import pytest

from tests.fake_study import CONTEXT, FakeObjective, fake_run
from vflowopt_search.report import landscape_figures, several, several_sections, summary_sections
from vflowopt_search.report.facts import Result, results
from vflowopt_search.report.frames import comparison, history, staircase
from vflowopt_search.report.runs import Run
from vflowopt_search.report.several import BudgetCurve, budget_curve
from vflowopt_search.report.several_sections import compared


def test_runs_are_drawn_by_budget() -> None:
    run = fake_run(total=3)
    runs = [Run(run.study, run.best, {"random": 0.9}), Run(run.study, None, {"random": 0.7})]
    record = budget_curve(runs)
    assert record.retain == {"found": [0.25, 0.25], "random": [0.25, 0.25]}
    assert record.divergence["random"] == [0.9, 0.7]
    budgets, middle = record.medians("random")
    assert budgets == [0.25] and middle == pytest.approx([0.8])
    assert record.run["found"] == ["fake", "fake"] and record.remark == ""


def test_the_held_out_half_is_a_series_of_its_own() -> None:
    run = fake_run(total=3)
    assert run.best is not None and run.best.provenance and run.best.provenance.objective
    measured = run.best.provenance.objective.model_copy(update={"held_out": 0.5})
    origin = run.best.provenance.model_copy(update={"objective": measured})
    best = run.best.model_copy(update={"provenance": origin})
    assert budget_curve([Run(run.study, best)]).divergence["found, held-out samples"] == [0.5]


def test_what_measures_different_things_is_not_compared() -> None:
    run, other = fake_run(total=1), fake_run(FakeObjective(metric="flow"), total=1)
    record = budget_curve([Run(run.study), Run(other.study)])
    assert record.retain == {}
    assert record.refusal.startswith("These runs differ in metric: their divergences measure")


def test_other_samples_are_compared_with_a_remark() -> None:
    run = fake_run(total=1)
    other = fake_run(total=1, context=CONTEXT | {"calibration_sha256": "bead"})
    record = budget_curve([Run(run.study), Run(other.study)])
    assert record.retain["found"] == [0.25, 0.25]
    assert "different calibration samples" in record.remark


def test_the_best_of_each_run_stand_beside_each_other() -> None:
    run, other = fake_run(total=6), fake_run(total=3)
    runs = [Run(run.study), Run(other.study), Run(optuna.create_study(study_name="none"))]
    names = ["fake (25.0%)", "fake (25.0%) #2"]
    assert list(several.named(runs)) == [*names, "none"]
    stairs = several.staircases(runs)
    assert list(stairs.alive) == names
    assert stairs.alive[names[1]] == staircase(other.study).alive["found"]
    record = several.progress(runs)
    assert record.best == {
        name: history(r.study).best for name, r in zip(names, runs, strict=False)
    }
    drawn = landscape_figures.progress_figure(record).data
    assert [trace.name for trace in drawn] == names and drawn[1].y == tuple(record.best[names[1]])


def test_of_empty_studies_there_is_nothing() -> None:
    empty = optuna.create_study(study_name="empty")
    assert budget_curve([Run(empty), Run(empty)]) == BudgetCurve({}, {}, {})
    assert several.staircases([Run(empty)]).alive == {}


def test_the_budget_figure_has_points_and_medians() -> None:
    curve = BudgetCurve(
        {"found": [0.1, 0.1, 0.2]}, {"found": [3.0, 1.0, 0.5]}, {"found": ["a"] * 3}
    )
    points, line = landscape_figures.budget_figure(curve).data
    assert points.y == (3.0, 1.0, 0.5)
    assert line.x == (0.1, 0.2) and line.y == (2.0, 0.5)


def test_the_compare_tab_names_the_closest_baseline_of_the_summary() -> None:
    """Baselines are also the textbook's, which `baselines.json` does not have."""
    outcome = fake_run(total=30)
    run = Run(outcome.study, outcome.best, {"random": 2.0})
    name, divergence = next(iter(comparison(run.study, run.baselines).baselines.items()))
    assert name != "random"
    table, strategies, *_ = compared([run, run])
    assert f">{name}: {divergence:.4g}</td>" in table.before
    assert ">fake (25.0%) #2</td>" in table.before
    for each in comparison(run.study, run.baselines).name:
        assert strategies.before.count(f">{each}</td>") == 2


def test_the_compare_tab_has_what_was_measured_of_baselines_and_of_speed() -> None:
    outcome = fake_run(total=3)
    rows = [{"name": "random", "retained": 0.25, "divergence": 2.0, "held_out": 1.75}]
    speed = {"speedup": 2.5, "kv_bytes": 2048.0, "conditions": "batch size 1"}
    run = Run(outcome.study, outcome.best, {"random": 2.0}, summary={"comparison": rows})
    table, strategies, *_ = compared([run, run])
    why = "Textbook strategies were measured as trials of the search, so they have no held-out"
    assert why in strategies.before
    assert ">1.75</td>" in strategies.before and "KV cache" not in table.before
    measured = [
        Result(**(vars(row) | (speed if row.name == "found" else {}))) for row in results(run)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(several_sections, "results", lambda _: measured)
        patch.setattr(summary_sections, "results", lambda _: measured)
        table, strategies, *_ = compared([run, run])
    for section in (table, strategies):
        assert section.before.count(">2.50 x</td>") == section.before.count(">2.05 kB</td>") == 2
    assert "Time to first token and KV cache: batch size 1." in table.after
