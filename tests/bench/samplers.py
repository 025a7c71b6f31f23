"""Compare samplers on the quickstart's objective: `python -m tests.bench.samplers [--help]`.

Prints, for each sampler and number of trials, the best fully measured divergence (median over
seeds and each seed's) and the sample evaluations spent until then.
"""

from __future__ import annotations

import argparse
from statistics import median

from optuna.storages import InMemoryStorage

from vflowopt_search.calibration.choice import from_dataset
from vflowopt_search.objective import Objective, build_objective
from vflowopt_search.recipe import StudyRecipe
from vflowopt_search.search_space import SearchSpace
from vflowopt_search.study import StudySettings, run_study
from vflowopt_search.testbed import load_model, load_processor
from vflowopt_search.testbed.data import calibration_dataset
from vflowopt_search.trials import PER_SAMPLE, SAMPLES_SEEN

SAMPLERS = ("random", "tpe-multivariate", "tpe")


def quickstart_objective(recipe: StudyRecipe) -> Objective:
    """The objective of the quickstart, its reference kept in memory only."""
    rows = calibration_dataset(recipe.samples, recipe.seed)
    samples = from_dataset(rows, name="testbed", num_samples=recipe.samples, seed=recipe.seed)
    return build_objective(load_model(), load_processor(), samples, metric=recipe.metric)


def curve(
    objective: Objective, recipe: StudyRecipe, sampler: str, seed: int, at: list[int]
) -> list[tuple[float, int]]:
    """Best divergence and evaluations spent after each number of trials in `at`."""
    outcome = run_study(
        objective,
        SearchSpace.load(recipe.space).bind(objective.facts),
        StudySettings("bench", recipe.retain, max(at), seed, sampler=sampler),  # type: ignore[arg-type]
        storage=InMemoryStorage(),
    )
    best, spent, points = float("inf"), 0, []
    for number, trial in enumerate(outcome.study.get_trials(), start=1):
        spent += trial.user_attrs.get(SAMPLES_SEEN, 0)
        whole = None not in trial.user_attrs.get(PER_SAMPLE, [None])
        if whole and trial.value is not None:
            best = min(best, trial.value)
        if number in at:
            points.append((best, spent))
    return points


def main() -> None:
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 200, 400])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    asked = parser.parse_args()
    recipe = StudyRecipe.load("quickstart")
    objective = quickstart_objective(recipe)
    print(f"| sampler | trials | median {recipe.metric} | each seed | evaluations |")
    print("|---|---|---|---|---|", flush=True)
    for sampler in asked.samplers:
        curves = [curve(objective, recipe, sampler, seed, asked.trials) for seed in asked.seeds]
        for place, trials in enumerate(asked.trials):
            found = [points[place][0] for points in curves]
            spent = median(points[place][1] for points in curves)
            each = " ".join(f"{value:.4f}" for value in found)
            print(f"| {sampler} | {trials} | {median(found):.4f} | {each} | {spent:.0f} |")


if __name__ == "__main__":
    main()
