"""Peak memory of a search beside that of one unpruned forward of one sample.

`python -m tests.bench.peak_memory [--help]`. Each is a process of its own; peaks are resident
memory, the model's weights and Python included.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable

import torch

from tests.bench.subjects import SUBJECTS, Subject
from tests.bench.trial_cost import loop_of, proposals_of, same_strategy
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.objective import build_objective

TRIALS = 3


def nothing(subject: Subject) -> None:
    """Only load the model."""


def one_forward(subject: Subject) -> None:
    """One unpruned forward of one sample."""
    inputs = encode(subject.processor, [subject.samples.samples[0]])
    with torch.inference_mode():
        subject.model(**inputs, logits_to_keep=1)


def search(subject: Subject) -> None:
    """What is paid once, and full trials on all samples."""
    objective = build_objective(subject.model, subject.processor, subject.samples)
    loop = loop_of(subject, retain=0.10)
    for proposal in proposals_of(loop, TRIALS):
        strategy = same_strategy(loop, proposal, subject)
        objective.measure(strategy, range(objective.num_samples))


WORK: dict[str, Callable[[Subject], None]] = {
    "model alone": nothing,
    "one forward": one_forward,
    "search": search,
}


def peak_of(work: str, subject: str, samples: int) -> int:
    """Peak resident memory of a process that does the work, in MiB."""
    command = [sys.executable, "-m", "tests.bench.peak_memory", "--subject", subject]
    command += ["--samples", str(samples), "--work", work]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Run all three and print the table, or do one and print its peak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--subject", choices=sorted(SUBJECTS), default="testbed")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--work", choices=sorted(WORK), help="do this only and print its MiB")
    asked = parser.parse_args()
    if asked.work:
        WORK[asked.work](SUBJECTS[asked.subject](asked.samples))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return
    peaks = {work: peak_of(work, asked.subject, asked.samples) for work in WORK}
    print(f"| {asked.subject}, {asked.samples} samples | peak MiB | ratio to one forward |")
    print("|---|---|---|")
    for work, peak in peaks.items():
        print(f"| {work} | {peak} | {peak / peaks['one forward']:.2f} |")


if __name__ == "__main__":
    main()
