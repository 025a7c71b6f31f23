"""What a search costs, the published loop and ours side by side.

`python -m tests.bench.search_cost [--help]`. Same model, samples and budget in one run. Prints the
seconds of a full trial by phase; the seconds and sample evaluations until our search has found a
strategy as good as the loop's last best one; and our best when as many seconds were spent. Medians
over repeats and seeds; on a noisy machine only the ratios count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from optuna.storages import InMemoryStorage

from tests.bench.published_loop import Proposal, PublishedLoop
from tests.bench.subjects import SUBJECTS, Subject
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.objective import Objective, build_objective
from vflowopt_search.outcome import TrialReport
from vflowopt_search.search_space import SearchSpace
from vflowopt_search.strategy import Importance, Recycling, Stage, Strategy
from vflowopt_search.study import StudySettings, run_study
from vflowopt_search.trials import SAMPLES_SEEN, best_full


@dataclass(frozen=True)
class Point:
    """Where a search stood after a trial."""

    seconds: float
    evaluations: int
    best: float


def loop_of(subject: Subject, retain: float) -> PublishedLoop:
    """The published loop on a subject; its model's tower is set to attend eagerly."""
    return PublishedLoop(
        subject.model,
        [encode(subject.processor, [sample]) for sample in subject.samples.samples],
        retain,
        subject.pixels.mean,
        subject.pixels.std,
    )


def same_strategy(loop: PublishedLoop, proposal: Proposal, subject: Subject) -> Strategy:
    """A proposal of the loop as a strategy of ours."""
    first, second = loop.layers
    one, two, three = proposal.ratios
    stages = ((0, one), (first, two), (second, three))
    return Strategy(
        name="published",
        importance=Importance(
            vision_layer=loop.vision_layer,
            context_threshold=proposal.threshold,
            entropy_weight=proposal.entropy_weight,
            pixels=subject.pixels,
        ),
        stages=tuple(Stage(layer=layer, keep_ratio=ratio) for layer, ratio in stages),
        recycling=Recycling(cell=proposal.cell),
        separators="keep",
    )


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def objective_of(subject: Subject) -> Objective:
    """Our objective, its reference in memory only."""
    return build_objective(subject.model, subject.processor, subject.samples)


def compare_trials(subject: Subject, retain: float, repeats: int) -> None:
    """Full trials of both, by turns, as a table."""
    loop = loop_of(subject, retain)
    proposals = [p for p in map(loop.proposal, spread_points(loop, repeats * 4)) if p][:repeats]
    with subject.eager_tower():
        loop.divergence(proposals[0])  # warm-up
    loop.seconds.clear()
    start = time.perf_counter()
    objective = objective_of(subject)
    everything = range(objective.num_samples)
    objective.measure(same_strategy(loop, proposals[0], subject), everything)
    paid_once = time.perf_counter() - start
    theirs, ours, gaps = [], [], []
    for proposal in proposals:
        strategy = same_strategy(loop, proposal, subject)
        with subject.eager_tower():
            start = time.perf_counter()
            published = loop.divergence(proposal)
            theirs.append(time.perf_counter() - start)
        start = time.perf_counter()
        values = objective.measure(strategy, everything)
        ours.append(time.perf_counter() - start)
        gaps.append(abs(published - sum(values) / len(values)))
    print(f"## A full trial, {subject.name}, {objective.num_samples} samples, retain {retain}\n")
    print("| | seconds | share |\n|---|---|---|")
    for phase, spent in sorted(loop.seconds.items(), key=lambda item: -item[1]):
        print(f"| published: {phase} | {spent / repeats:.3f} | {spent / sum(theirs):.0%} |")
    ratio = median(t / o for t, o in zip(theirs, ours, strict=True))
    print(f"| published, whole trial (median) | {median(theirs):.3f} | |")
    print(f"| ours, whole trial (median) | {median(ours):.3f} | |")
    print(f"| ours, paid once per study | {paid_once:.3f} | |")
    print(f"| **published / ours (median of pairs)** | **{ratio:.1f}** | |")
    print(f"\nThe two differ in divergence by at most {max(gaps):.3f} (token counts differ: theirs")
    print("are about, ours exactly, what the ratios say).\n", flush=True)


def spread_points(loop: PublishedLoop, count: int) -> list[list[float]]:
    """Points spread over the loop's space."""
    from skopt.sampler import Lhs
    from skopt.space import Space

    points: list[list[float]] = Lhs().generate(Space(loop.bounds()).dimensions, count, 0)
    return points


def loop_curve(loop: PublishedLoop, subject: Subject, trials: int, seed: int) -> list[Point]:
    """The loop's best after each of its trials."""
    curve: list[Point] = []
    best, evaluations = float("inf"), 0
    with subject.eager_tower():
        for value, seconds in loop.search(trials, seed):
            best = min(best, value)
            evaluations += len(loop.inputs)
            curve.append(Point(seconds, evaluations, best))
    return curve


def our_curve(subject: Subject, retain: float, trials: int, seed: int) -> list[Point]:
    """Our best full measurement after each trial; what is paid once counts from the start."""
    start = time.perf_counter()
    objective = objective_of(subject)
    space = SearchSpace.load("vflowopt").bind(objective.facts)
    ends: list[float] = []

    def ended(report: TrialReport) -> None:
        ends.append(time.perf_counter() - start)

    outcome = run_study(
        objective,
        space,
        StudySettings("bench", retain, trials, seed),
        storage=InMemoryStorage(),
        on_trial=ended,
    )
    curve: list[Point] = []
    done = outcome.study.get_trials()
    for number, seconds in enumerate(ends, start=1):
        found = best_full(done[:number])
        spent = sum(trial.user_attrs.get(SAMPLES_SEEN, 0) for trial in done[:number])
        best = float("inf") if found is None or found.value is None else found.value
        curve.append(Point(seconds, spent, best))
    return curve


def reached(curve: Sequence[Point], target: float) -> Point | None:
    """The first point at least as good as `target`."""
    return next((point for point in curve if point.best <= target), None)


def compare_searches(
    subject: Subject, retain: float, trials: tuple[int, int], seeds: Sequence[int]
) -> None:
    """Cost to reach the loop's last best value, and quality at equal cost, as a table."""
    print(
        f"## To the published loop's best of {trials[0]} trials, {subject.name}, retain {retain}\n"
    )
    columns = ["seed", "its best", "its s", "our s to it", "ratio"]
    columns += ["its evaluations", "ours", "ratio", "our best in its s"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    ratios: list[tuple[float, float]] = []
    for seed in seeds:
        theirs = loop_curve(loop_of(subject, retain), subject, trials[0], seed)
        ours = our_curve(subject, retain, trials[1], seed)
        last, point = theirs[-1], reached(ours, theirs[-1].best)
        equal = min((p.best for p in ours if p.seconds <= last.seconds), default=float("inf"))
        if point is None:
            print(
                f"| {seed} | {last.best:.4f} | {last.seconds:.1f} | never | | | | | {equal:.4f} |"
            )
            ratios.append((0.0, 0.0))
            continue
        ratios.append((last.seconds / point.seconds, last.evaluations / point.evaluations))
        print(
            f"| {seed} | {last.best:.4f} | {last.seconds:.1f} | {point.seconds:.2f} "
            f"| {ratios[-1][0]:.1f} | {last.evaluations} | {point.evaluations} "
            f"| {ratios[-1][1]:.1f} | {equal:.4f} |",
            flush=True,
        )
    seconds, evaluations = (median(column) for column in zip(*ratios, strict=True))
    print(f"\nMedian ratio: **{seconds:.1f}** in seconds, **{evaluations:.1f}** in evaluations.\n")


def main() -> None:
    """Run the comparison and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--subject", choices=sorted(SUBJECTS), default="testbed")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--retain", type=float, default=0.10)
    parser.add_argument("--repeats", type=int, default=5, help="full trials of each")
    parser.add_argument("--loop-trials", type=int, default=100, help="0 leaves the search out")
    parser.add_argument("--our-trials", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    asked = parser.parse_args()
    subject = SUBJECTS[asked.subject](asked.samples)
    compare_trials(subject, asked.retain, asked.repeats)
    if asked.loop_trials:
        compare_searches(subject, asked.retain, (asked.loop_trials, asked.our_trials), asked.seeds)


if __name__ == "__main__":
    main()
