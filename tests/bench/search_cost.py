"""What a search costs, the published loop and ours side by side.

`python -m tests.bench.search_cost [--help]`. Same model, samples and budget in one run. Prints the
seconds of a full trial by phase, on both sides; the seconds and sample evaluations until our
search has found a strategy as good as the loop's last best one; our best when as many seconds, and
when as many sample evaluations, were spent; and the seconds of the searches' trials by phase.
Medians over repeats and seeds; on a noisy machine only the ratios count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median

import torch
from optuna.storages import InMemoryStorage

from tests.bench.phases import MAPS, SAMPLER, Phases, Seconds, timed
from tests.bench.published_loop import PublishedLoop
from tests.bench.subjects import SUBJECTS, Subject
from tests.bench.trial_cost import (
    loop_of,
    objective_of,
    print_phases,
    print_trials,
    proposals_of,
    trial_costs,
)
from vflowopt_search.ops.bench.rows import setup_of
from vflowopt_search.outcome import TrialReport
from vflowopt_search.search_space import SearchSpace
from vflowopt_search.study import StudySettings, run_study
from vflowopt_search.trials import SAMPLES_SEEN, best_full

NEVER = float("inf")


@dataclass(frozen=True)
class Point:
    """Where a search stood after a trial."""

    seconds: float
    evaluations: int
    best: float


@dataclass(frozen=True)
class Curve:
    """A search, trial by trial.

    Attributes:
        points: after each trial.
        per_trial: mean seconds of a trial by phase; what is paid once is left out.
    """

    points: list[Point]
    per_trial: Seconds

    @property
    def last(self) -> Point:
        """Where the search ended."""
        return self.points[-1]

    def reached(self, target: float) -> Point:
        """The first point at least as good as `target`; one that costs infinitely much if none."""
        found = (point for point in self.points if point.best <= target)
        return next(found, Point(NEVER, 0, NEVER))

    def best_within(self, *, seconds: float = NEVER, evaluations: float = NEVER) -> float:
        """The best when so much was spent at most."""
        return min(
            (p.best for p in self.points if p.seconds <= seconds and p.evaluations <= evaluations),
            default=NEVER,
        )


@dataclass(frozen=True)
class Comparison:
    """One seed: the loop's search, and ours until it is as good, or has spent as much."""

    seed: int
    theirs: Curve
    ours: Curve

    @property
    def figures(self) -> dict[str, float]:
        """The table's columns; ratios are published over ours, 0 where ours never got there."""
        end = self.theirs.last
        point = self.ours.reached(end.best)
        met = point.best < NEVER
        return {
            "its best": end.best,
            "its s": end.seconds,
            "our s to it": point.seconds,
            "s ratio": end.seconds / point.seconds,
            "its evaluations": end.evaluations,
            "ours to it": point.evaluations if met else NEVER,
            "evaluations ratio": end.evaluations / point.evaluations if met else 0.0,
            "our best in its s": self.ours.best_within(seconds=end.seconds),
            "our best in its evaluations": self.ours.best_within(evaluations=end.evaluations),
            "our s at the end": self.ours.last.seconds,
            "our evaluations at the end": self.ours.last.evaluations,
        }


def loop_curve(loop: PublishedLoop, trials: int, seed: int) -> Curve:
    """The loop's best after each of its trials."""
    points: list[Point] = []
    best, evaluations = NEVER, 0
    for value, seconds, spent in loop.search(trials, seed):
        best = min(best, value)
        evaluations += spent
        points.append(Point(seconds, evaluations, best))
    return Curve(points, _each(loop.phases.take(), trials))


def our_curve(subject: Subject, retain: float, trials: int, seed: int) -> Curve:
    """Our best full measurement after each trial; what is paid once counts from the start."""
    start = time.perf_counter()
    objective, phases = objective_of(subject), Phases()
    space = SearchSpace.load("vflowopt").bind(objective.facts)
    settings = StudySettings("bench", retain, trials, seed)
    ends: list[float] = []

    def ended(report: TrialReport) -> None:
        ends.append(time.perf_counter() - start)

    with timed(objective, phases) as measuring, phases.during(SAMPLER):
        outcome = run_study(measuring, space, settings, storage=InMemoryStorage(), on_trial=ended)
    points: list[Point] = []
    done = outcome.study.get_trials()
    for number, seconds in enumerate(ends, start=1):
        found = best_full(done[:number])
        spent = sum(trial.user_attrs.get(SAMPLES_SEEN, 0) for trial in done[:number])
        best = NEVER if found is None or found.value is None else found.value
        points.append(Point(seconds, spent, best))
    return Curve(points, _each(phases.take(), len(ends)))


def _each(seconds: Seconds, trials: int) -> Seconds:
    return {phase: spent / trials for phase, spent in seconds.items() if phase != MAPS}


def compare_searches(
    subject: Subject, retain: float, trials: tuple[int, int], seeds: Sequence[int]
) -> list[Comparison]:
    """Search with both, and print a line for each seed, the medians and the phases."""
    print(
        f"## To the published loop's best of {trials[0]} trials, {subject.name}, retain {retain}, "
        f"{trials[1]} trials of ours\n"
    )
    done: list[Comparison] = []
    for seed in seeds:
        theirs = loop_curve(loop_of(subject, retain), trials[0], seed)
        done.append(Comparison(seed, theirs, our_curve(subject, retain, trials[1], seed)))
        figures = done[-1].figures
        if seed == seeds[0]:
            print(f"| seed | {' | '.join(figures)} |\n|{'---|' * (1 + len(figures))}")
        print(table_row(str(seed), figures), flush=True)
    print(table_row("**median**", medians([each.figures for each in done])))
    print(
        "\nA trial of the searches, mean over its trials, median over the seeds; ours are raced:\n"
    )
    print_phases(
        {
            "published": [each.theirs.per_trial for each in done],
            "ours": [each.ours.per_trial for each in done],
        }
    )
    return done


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median of every column."""
    return {name: median(row[name] for row in rows) for name in rows[0]}


def table_row(head: str, figures: dict[str, float]) -> str:
    """A line of the table."""
    return f"| {head} | {' | '.join(f'{value:.4g}' for value in figures.values())} |"


def main() -> None:
    """Run the comparison and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--subject", choices=sorted(SUBJECTS), default="testbed")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--retain", type=float, default=0.10)
    parser.add_argument("--repeats", type=int, default=5, help="full trials of each; 0 for none")
    parser.add_argument("--loop-trials", type=int, default=100, help="0 leaves the search out")
    parser.add_argument("--our-trials", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    asked = parser.parse_args()
    subject = SUBJECTS[asked.subject](asked.samples)
    packages = ", ".join(f"{name} {version(name)}" for name in ("transformers", "optuna"))
    print(f"{setup_of(torch.device('cpu'))}, {packages}, {torch.get_num_threads()} threads\n")
    if asked.repeats:
        loop = loop_of(subject, asked.retain)
        costs = trial_costs(loop, subject, proposals_of(loop, asked.repeats))
        print_trials(costs, subject.name, asked.retain)
    if asked.loop_trials:
        compare_searches(subject, asked.retain, (asked.loop_trials, asked.our_trials), asked.seeds)


if __name__ == "__main__":
    main()
