"""Seconds of a full trial, the published loop's and ours, of the same strategies in alternation."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median

from tests.bench.phases import Phases, Seconds, median_of, timed
from tests.bench.published_loop import Proposal, PublishedLoop
from tests.bench.subjects import Subject
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.objective import Objective, build_objective
from vflowopt_search.strategy import Importance, Recycling, Stage, Strategy


@dataclass
class TrialCosts:
    """What full trials took.

    Attributes:
        samples: of each trial.
        paid_once: seconds of ours before the first trial: reference and attention maps.
        theirs, ours: seconds of each trial by phase, in pairs.
        gaps: by how much the two differ in divergence, of each pair.
    """

    samples: int
    paid_once: float
    theirs: list[Seconds] = field(default_factory=list)
    ours: list[Seconds] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median over the pairs of published / ours."""
        pairs = zip(self.theirs, self.ours, strict=True)
        return median(sum(one.values()) / sum(other.values()) for one, other in pairs)


def loop_of(subject: Subject, retain: float) -> PublishedLoop:
    """The published loop on a subject."""
    return PublishedLoop(
        subject.model,
        [encode(subject.processor, [sample]) for sample in subject.samples.samples],
        retain,
        subject.pixels.mean,
        subject.pixels.std,
    )


def objective_of(subject: Subject) -> Objective:
    """Our objective, its reference in memory only."""
    return build_objective(subject.model, subject.processor, subject.samples)


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


def proposals_of(loop: PublishedLoop, count: int) -> list[Proposal]:
    """Proposals spread over the loop's space that leave something for the last ratio."""
    from skopt.sampler import Lhs
    from skopt.space import Space

    points = Lhs().generate(Space(loop.bounds()).dimensions, 4 * count, 0)
    return [found for found in map(loop.proposal, points) if found is not None][:count]


def trial_costs(loop: PublishedLoop, subject: Subject, proposals: list[Proposal]) -> TrialCosts:
    """Run full trials of both in alternation, after a trial of each that is not counted."""
    loop.divergence(proposals[0])
    loop.phases.take()
    start, phases = time.process_time(), Phases()
    objective = objective_of(subject)
    everything = range(objective.num_samples)
    objective.measure(same_strategy(loop, proposals[0], subject), everything)
    costs = TrialCosts(len(everything), time.process_time() - start)
    for proposal in proposals:
        published = loop.divergence(proposal)
        costs.theirs.append(loop.phases.take())
        with timed(objective, phases) as measuring:
            values = measuring.measure(same_strategy(loop, proposal, subject), everything)
        costs.ours.append(phases.take())
        costs.gaps.append(abs(published - sum(values) / len(values)))
    return costs


def print_trials(costs: TrialCosts, name: str, retain: float) -> None:
    """The costs as a table."""
    print(f"## A full trial, {name}, {costs.samples} samples, retain {retain}\n")
    print_phases({"published": costs.theirs, "ours": costs.ours})
    print(f"| ours, paid once per study | {costs.paid_once:.3f} | |")
    print(f"| **published / ours (median of {len(costs.ours)} pairs)** | **{costs.ratio:.1f}** | |")
    print(f"\nThe two differ in divergence by at most {max(costs.gaps):.3f} (token counts differ:")
    print("theirs are about, ours exactly, what the ratios say).\n", flush=True)


def print_phases(sides: dict[str, list[Seconds]]) -> None:
    """Median seconds of a trial of each side by phase, and their shares of it."""
    print("| | seconds | share |\n|---|---|---|")
    for side, trials in sides.items():
        whole = median(sum(each.values()) for each in trials)
        for phase, seconds in median_of(trials).items():
            print(f"| {side}: {phase} | {seconds:.4f} | {seconds / whole:.1%} |")
        print(f"| {side}, whole trial | {whole:.4f} | |")
