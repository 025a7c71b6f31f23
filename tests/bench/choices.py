"""Compare choices of the search at equal cost on the quickstart's objective.

`python -m tests.bench.choices --out choices.csv`. Cost is counted in sample evaluations. Each
configuration differs from the default in one thing (`tests.bench.configurations`). A finished
study is a row of the CSV, and is not run again; seed after seed, so that whenever it is stopped
the table is balanced. `cma-es` needs the package `cmaes`.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, inf
from pathlib import Path
from statistics import median, quantiles

import optuna
from optuna import TrialPruned
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import wilcoxon

from tests.bench.configurations import CONFIGURATIONS, DEFAULT, Configuration, TimedSampler
from vflowopt_search.calibration.choice import from_dataset
from vflowopt_search.objective import Objective, build_objective
from vflowopt_search.outcome import strategy_of
from vflowopt_search.race import DrawsStrategies, MeasuresStrategies, Race, stopping_rule
from vflowopt_search.recipe import StudyRecipe
from vflowopt_search.rounds import Rounds
from vflowopt_search.search_space import SearchSpace
from vflowopt_search.strategy import Strategy
from vflowopt_search.testbed import load_model, load_processor
from vflowopt_search.testbed.data import calibration_dataset
from vflowopt_search.trials import SAMPLES_SEEN, best_full, is_full, value_of

BATCH = 8
"""Samples between two looks of the racing test."""

Row = Mapping[str, str | float]


@dataclass
class SearchSamples:
    """The first samples of an objective, those that are searched with; the others are held out."""

    whole: Objective
    num_samples: int
    seconds: float = 0.0

    @property
    def metric(self) -> str:
        return self.whole.metric

    def measure(self, strategy: Strategy, indices: Sequence[int]) -> list[float]:
        """Divergence of some samples; the processor seconds are counted."""
        start = time.process_time()
        values = self.whole.measure(strategy, indices)
        self.seconds += time.process_time() - start
        return values

    def measure_many(
        self, strategies: Sequence[Strategy], indices: Sequence[int]
    ) -> list[list[float]]:
        """The same of several strategies."""
        return [self.measure(strategy, indices) for strategy in strategies]

    def held_out(self, strategy: Strategy) -> float:
        """Mean divergence of the samples that are not searched with."""
        others = range(self.num_samples, self.whole.num_samples)
        return fsum(self.whole.measure(strategy, others)) / len(others)


def quickstart_samples(recipe: StudyRecipe, searched: int, held_out: int) -> SearchSamples:
    """The quickstart's objective, its reference kept in memory only."""
    rows = calibration_dataset(searched + held_out, recipe.seed)
    samples = from_dataset(rows, name="testbed", num_samples=len(rows), seed=recipe.seed)
    whole = build_objective(
        load_model(), load_processor(), samples, metric=recipe.metric, batch_size=BATCH
    )
    return SearchSamples(whole, searched)


def race_of(
    configuration: Configuration,
    objective: MeasuresStrategies,
    space: DrawsStrategies,
    retain: float,
    seed: int,
) -> tuple[Race, TimedSampler]:
    """What measures a trial, and what draws it."""
    sampler = TimedSampler(configuration.sampler, seed, list(space.textbook().values()))
    return Race(objective, space, sampler, "bench", retain, seed), sampler


def run_trials(race: Race, evaluations: int, *, racing: bool) -> list[FrozenTrial]:
    """Trials until so many sample evaluations are spent."""
    storage, pruner = InMemoryStorage(), stopping_rule(racing=racing)
    study = optuna.create_study(
        storage=storage, direction="minimize", sampler=race.sampler, pruner=pruner
    )
    # a measured trial costs at least one evaluation; an infeasible one nothing
    for total in range(1, evaluations + 1):
        try:
            Rounds(study, storage, race, total, None).run()
        except TrialPruned:
            study.tell(total - 1, state=TrialState.PRUNED)
        if cost(study.get_trials(deepcopy=False)) >= evaluations:
            break
    return study.get_trials()


def cost(trials: Sequence[FrozenTrial]) -> int:
    """Sample evaluations that trials took."""
    return sum(trial.user_attrs.get(SAMPLES_SEEN, 0) for trial in trials)


def within(trials: Sequence[FrozenTrial], evaluations: int) -> list[FrozenTrial]:
    """The first trials that together cost no more than this."""
    numbers = range(len(trials) + 1)
    return list(trials[: max(n for n in numbers if cost(trials[:n]) <= evaluations)])


def best_at(trials: Sequence[FrozenTrial], evaluations: int) -> float:
    """Best fully measured divergence when this was spent."""
    best = best_full(within(trials, evaluations))
    return inf if best is None else value_of(best)


def run(
    name: str, samples: SearchSamples, recipe: StudyRecipe, seed: int, costs: Sequence[int]
) -> Row:
    """One study, as a row of the CSV."""
    samples.seconds = 0.0
    configuration = CONFIGURATIONS[name]
    space = configuration.bind(SearchSpace.load(recipe.space), samples.whole.facts, recipe.retain)
    race, sampler = race_of(configuration, samples, space, recipe.retain, seed)
    trials = run_trials(race, max(costs), racing=configuration.racing)
    paid = within(trials, max(costs))
    best = best_full(paid)
    return {
        "configuration": name,
        "seed": seed,
        "samples": samples.num_samples,
        **{f"best_{at}": best_at(trials, at) for at in costs},
        "held_out": inf if best is None else samples.held_out(strategy_of(best)),
        "trials": len(paid),
        "full": sum(map(is_full, paid)),
        "infeasible": sum(trial.state is TrialState.PRUNED for trial in paid),
        "sampler_seconds": round(sampler.seconds, 2),
        "objective_seconds": round(samples.seconds, 2),
    }


def fields(costs: Sequence[int]) -> list[str]:
    """Columns of the CSV."""
    counts = ["trials", "full", "infeasible", "sampler_seconds", "objective_seconds"]
    return [
        "configuration",
        "seed",
        "samples",
        *[f"best_{at}" for at in costs],
        "held_out",
        *counts,
    ]


def read_rows(out: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of the studies that are done; a file with other columns is refused."""
    if not out.exists():
        return []
    with out.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != columns:
            raise SystemExit(f"{out} has columns {reader.fieldnames}, not {columns}; name another")
        return list(reader)


def append_row(out: Path, row: Row) -> None:
    """Write a finished study; the first one brings the header."""
    new = not out.exists()
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def table(rows: Sequence[Mapping[str, str]], costs: Sequence[int]) -> str:
    """Median (quartiles) of each configuration, and its wins against the default."""
    measures = [*[f"best_{at}" for at in costs], "held_out"]
    heads = [f"best at {at}" for at in costs] + [f"other samples, best at {max(costs)}"]
    columns = [cell for head in heads for cell in (head, "wins (p)")]
    lines = [
        f"| configuration | seeds | {' | '.join(columns)} | trials | sampler s |",
        "|---" * (len(columns) + 4) + "|",
    ]
    default = by_seed(rows, DEFAULT)
    for name in dict.fromkeys(row["configuration"] for row in rows):
        mine = by_seed(rows, name)
        cells = [name, str(len(mine))]
        for measure in measures:
            values = {seed: float(row[measure]) for seed, row in mine.items()}
            rivals = {seed: float(row[measure]) for seed, row in default.items()}
            cells += [
                spread(list(values.values())),
                "" if name == DEFAULT else duel(values, rivals),
            ]
        cells += [f"{median(float(row[f]) for row in mine.values()):.0f}" for f in LAST]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


LAST = ("trials", "sampler_seconds")


def by_seed(rows: Sequence[Mapping[str, str]], name: str) -> dict[int, Mapping[str, str]]:
    """Rows of a configuration."""
    return {int(row["seed"]): row for row in rows if row["configuration"] == name}


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return f"{middle:.4f} ({low:.4f} to {high:.4f})"


def duel(values: Mapping[int, float], rivals: Mapping[int, float]) -> str:
    """Of how many seeds that both ran one is better, and the signed-rank test's p."""
    gaps = [values[seed] - rivals[seed] for seed in sorted(values.keys() & rivals.keys())]
    if not any(gaps):
        return f"0/{len(gaps)} (same)"
    return f"{sum(gap < 0 for gap in gaps)}/{len(gaps)} ({wilcoxon(gaps).pvalue:.3f})"


def main() -> None:
    """Run what is not in the CSV yet and print its table."""
    about = __doc__.splitlines()[0] if __doc__ else None
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, required=True, help="CSV, one row per finished study")
    parser.add_argument(
        "--configs", nargs="+", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS)
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 11)))
    parser.add_argument("--evaluations", type=int, nargs="+", default=[1600, 3200, 6400])
    parser.add_argument("--samples", type=int, default=64, help="samples to search with")
    parser.add_argument("--held-out", type=int, default=256, help="other samples, for the bests")
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    columns = fields(asked.evaluations)
    done = {(row["configuration"], int(row["seed"])) for row in read_rows(asked.out, columns)}
    left = [(n, seed) for seed in asked.seeds for n in asked.configs if (n, seed) not in done]
    if left:
        recipe = StudyRecipe.load("quickstart")
        samples = quickstart_samples(recipe, asked.samples, asked.held_out)
    for name, seed in left:
        start = time.perf_counter()
        append_row(asked.out, run(name, samples, recipe, seed, asked.evaluations))
        print(f"{name}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    print(table(read_rows(asked.out, columns), asked.evaluations))


if __name__ == "__main__":
    main()
