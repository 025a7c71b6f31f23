"""What measuring several strategies together brings.

`python -m tests.bench.trials_per_batch [--help]`. The same strategies, drawn at random, are fully
measured one by one and in batches, in alternation. Prints trials per hour, the median ratio to
one by one of the same turn, and the largest difference of any sample's divergence.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median

import optuna
import torch

from tests.bench.subjects import SUBJECTS
from vflowopt_search.objective import Objective, build_objective
from vflowopt_search.race import race_step
from vflowopt_search.search_space import SearchSpace
from vflowopt_search.strategy import Strategy


def drawn(objective: Objective, count: int, retain: float) -> list[Strategy]:
    """Strategies of the shipped space."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = SearchSpace.load("vflowopt").bind(objective.facts)
    return [space.suggest(study.ask(), retain) for _ in range(count)]


def measured(objective: Objective, strategies: Sequence[Strategy], size: int) -> list[list[float]]:
    """Divergence of each strategy on every sample, in the steps of a study."""
    samples, step = range(objective.num_samples), race_step(objective.num_samples)
    values: list[list[float]] = []
    for start in range(0, len(strategies), size):
        together = strategies[start : start + size]
        rows: list[list[float]] = [[] for _ in together]
        for first in range(0, len(samples), step):
            found = objective.measure_many(together, samples[first : first + step])
            for row, more in zip(rows, found, strict=True):
                row += more
        values += rows
    return values


def difference(values: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    """The largest of any sample."""
    return max(
        abs(one - other)
        for row, others_row in zip(values, others, strict=True)
        for one, other in zip(row, others_row, strict=True)
    )


def compare(
    objective: Objective, strategies: Sequence[Strategy], sizes: Sequence[int], repeats: int
) -> None:
    """Measure in alternation and print the table."""
    expected = measured(objective, strategies, 1)  # also computes the attention maps
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    apart = dict.fromkeys(sizes, 0.0)
    for turn in range(repeats):
        for size in sizes if turn % 2 == 0 else list(reversed(sizes)):
            start = time.perf_counter()
            values = measured(objective, strategies, size)
            seconds[size].append((time.perf_counter() - start) / len(strategies))
            apart[size] = max(apart[size], difference(values, expected))
    print("| strategies per batch | seconds per trial | trials per hour | ratio | difference |")
    print("|---|---|---|---|---|")
    for size in sizes:
        each = median(seconds[size])
        ratio = median(
            one / many for one, many in zip(seconds[sizes[0]], seconds[size], strict=True)
        )
        print(f"| {size} | {each:.3f} | {3600 / each:.0f} | {ratio:.2f} | {apart[size]:.1e} |")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--subject", choices=sorted(SUBJECTS), default="testbed")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--retain", type=float, default=0.10)
    parser.add_argument("--strategies", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch-size", type=int, help="samples of each strategy in a batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    subject = SUBJECTS[asked.subject](asked.samples)
    objective = build_objective(
        subject.model.to(asked.device),
        subject.processor,
        subject.samples,
        batch_size=asked.batch_size,
    )
    device = torch.cuda.get_device_name() if asked.device.startswith("cuda") else "CPU"
    print(
        f"## {subject.name}, {asked.samples} samples, {device}, {torch.get_num_threads()} threads"
    )
    compare(objective, drawn(objective, asked.strategies, asked.retain), asked.sizes, asked.repeats)


if __name__ == "__main__":
    main()
