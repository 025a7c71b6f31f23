"""What a search costs, the published loop and ours side by side.

`python -m tests.bench.search_cost [--help]`. Same model, samples and budget in one run. Prints the
seconds of a full trial by phase, on both sides; the seconds and sample evaluations until our
search has found a strategy as good as the loop's last best one; our best when as many seconds, and
when as many sample evaluations, were spent; and the seconds of the searches' trials by phase.
Medians over repeats and seeds. Seconds are CPU time of the process; run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
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
from vflowopt_search.ops.bench.rows import append, setup_of
from vflowopt_search.outcome import TrialReport
from vflowopt_search.search_space import SearchSpace
from vflowopt_search.settings import StudySettings
from vflowopt_search.study import run_study
from vflowopt_search.trials import SAMPLES_SEEN, best_full

NEVER = float("inf")
PACKAGES = ("transformers", "optuna", "scikit-optimize")


@dataclass(frozen=True)
class Point:
    """Where a search stood after a trial."""

    seconds: float
    evaluations: float
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
        return next(found, Point(NEVER, NEVER, NEVER))

    def best_within(self, *, seconds: float = NEVER, evaluations: float = NEVER) -> float:
        """The best when so much was spent at most."""
        return min(
            (p.best for p in self.points if p.seconds <= seconds and p.evaluations <= evaluations),
            default=NEVER,
        )


@dataclass(frozen=True)
class Figures:
    """One seed; ratios are published over ours, 0 where ours never got there.

    Attributes:
        setting: model, samples, budget and trials of both, and the packages that search.
        its_best: the loop's last best; `our_s` and `our_evaluations` are what it took us to be as
            good, the paid-once part counted.
        best_in_its_s, best_in_its_evaluations: our best at the loop's cost, or when our search
            ended, if it ended before.
        end_s, end_evaluations: where our search ended.
        its_phases, our_phases: mean seconds of a trial by phase.
    """

    setting: str
    seed: int
    its_best: float
    its_s: float
    our_s: float
    s_ratio: float
    its_evaluations: float
    our_evaluations: float
    evaluations_ratio: float
    best_in_its_s: float
    best_in_its_evaluations: float
    end_s: float
    end_evaluations: float
    its_phases: Seconds
    our_phases: Seconds

    @classmethod
    def of(cls, setting: str, seed: int, theirs: Curve, ours: Curve) -> Figures:
        """What one seed's searches say."""
        end, point = theirs.last, ours.reached(theirs.last.best)
        return cls(
            setting,
            seed,
            its_best=end.best,
            its_s=end.seconds,
            our_s=point.seconds,
            s_ratio=end.seconds / point.seconds,
            its_evaluations=end.evaluations,
            our_evaluations=point.evaluations,
            evaluations_ratio=end.evaluations / point.evaluations,
            best_in_its_s=ours.best_within(seconds=end.seconds),
            best_in_its_evaluations=ours.best_within(evaluations=end.evaluations),
            end_s=ours.last.seconds,
            end_evaluations=ours.last.evaluations,
            its_phases=theirs.per_trial,
            our_phases=ours.per_trial,
        )


COLUMNS = [field.name for field in fields(Figures) if field.type == "float"]


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
    start = time.process_time()
    objective, phases = objective_of(subject), Phases()
    space = SearchSpace.load("vflowopt").bind(objective.facts)
    settings = StudySettings("bench", retain, trials, seed)
    ends: list[float] = []

    def ended(report: TrialReport) -> None:
        ends.append(time.process_time() - start)

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
) -> Iterator[Figures]:
    """Search with both, seed by seed."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    setting = f"{subject.name}, {len(subject.samples.samples)} samples, retain {retain}, "
    setting += f"{trials[0]} published trials, {trials[1]} of ours, {packages}"
    for seed in seeds:
        theirs = loop_curve(loop_of(subject, retain), trials[0], seed)
        yield Figures.of(setting, seed, theirs, our_curve(subject, retain, trials[1], seed))


def print_searches(found: Sequence[Figures]) -> None:
    """A line for each seed, the medians, and the medians of the phases."""
    print(
        f"## {found[0].setting}\n\n| seed | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}"
    )
    for each in found:
        print(table_row(str(each.seed), {name: getattr(each, name) for name in COLUMNS}))
    print(table_row("**median**", medians(found)))
    print(
        "\nA trial of the searches, mean over its trials, median over the seeds; ours are raced:\n"
    )
    print_phases(
        {
            "published": [each.its_phases for each in found],
            "ours": [each.our_phases for each in found],
        }
    )


def medians(found: Sequence[Figures]) -> Seconds:
    """Median of every column."""
    return {name: median(getattr(each, name) for each in found) for name in COLUMNS}


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
    parser.add_argument("--out", type=Path, help="a table to add a row of each seed to, as CSV")
    asked = parser.parse_args()
    subject = SUBJECTS[asked.subject](asked.samples)
    setup = setup_of(torch.device("cpu"))
    print(f"{setup}, {torch.get_num_threads()} threads\n", flush=True)
    if asked.repeats:
        loop = loop_of(subject, asked.retain)
        costs = trial_costs(loop, subject, proposals_of(loop, asked.repeats))
        print_trials(costs, subject.name, asked.retain)
    if not asked.loop_trials:
        return
    found, trials = list[Figures](), (asked.loop_trials, asked.our_trials)
    for each in compare_searches(subject, asked.retain, trials, asked.seeds):
        found.append(each)
        print(each, flush=True)
        if asked.out is not None:
            append(asked.out, setup, [each])
    print_searches(found)


if __name__ == "__main__":
    main()
