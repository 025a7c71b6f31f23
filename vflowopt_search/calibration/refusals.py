"""Samples that a model's processor does not take: left out, counted, and named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.samples import CalibrationSet, Sample, fingerprint
from vflowopt_search.errors import CalibrationError

MOST_UNUSABLE = 0.2
"""Share of a data set's rows that may be left out."""
NAMED = 5
"""How many of those left out a note names."""


@dataclass(frozen=True)
class Refusal:
    """A sample that a processor does not take, and the sentence that says why."""

    id: str
    reason: str


Refusals = Mapping[int, Refusal]
"""Number of a sample to why it is not taken."""


def find_refusals(processor: Any, samples: Sequence[Sample]) -> dict[int, Refusal]:
    """Those that the processor does not take, each asked by itself."""
    found: dict[int, Refusal] = {}
    for number, sample in enumerate(samples):
        try:
            encode(processor, [sample])
        except CalibrationError as error:
            found[number] = Refusal(sample.id, str(error))
    return found


def taken_by(processor: Any, samples: CalibrationSet) -> CalibrationSet:
    """What is left of a set without the samples that the processor does not take.

    Every sample goes through the processor, so this is for when one was refused.

    Raises:
        CalibrationError: they are more than `MOST_UNUSABLE` of all.
    """
    refusals = find_refusals(processor, samples.samples)
    require_few(refusals, len(samples))
    return without(samples, refusals)


def require_few(refusals: Refusals, num_samples: int) -> None:
    """Refuse to go on with what is left of a data set of which too much was left out.

    Raises:
        CalibrationError: more than `MOST_UNUSABLE` of the samples were.
    """
    if len(refusals) > MOST_UNUSABLE * num_samples:
        raise CalibrationError(
            f"{len(refusals)} of {num_samples} samples cannot be used, more than "
            f"{MOST_UNUSABLE:.0%}; fix the data set, or choose another ({_which(refusals)})"
        )


def without(samples: CalibrationSet, refusals: Refusals) -> CalibrationSet:
    """What is left, with its own fingerprint, and with a note on what was left out."""
    if not refusals:
        return samples
    left = tuple(one for number, one in enumerate(samples.samples) if number not in refusals)
    plural = "s" if len(refusals) > 1 else ""
    note = f"{len(refusals)} sample{plural} that cannot be used skipped: {_which(refusals)}"
    return replace(
        samples,
        samples=left,
        sha256=fingerprint(left),
        skipped=samples.skipped + len(refusals),
        refused=samples.refused + len(refusals),
        left_out="; ".join(filter(None, (samples.left_out, note))),
    )


def first_ids(ids: Iterable[str]) -> str:
    """The first few of them, and how many more there are."""
    known = list(ids)
    more = [f"and {len(known) - NAMED} more"] if len(known) > NAMED else []
    return ", ".join(known[:NAMED] + more)


def _which(refusals: Refusals) -> str:
    first = next(iter(refusals.values()))
    return f"{first_ids(one.id for one in refusals.values())} (the first: {first.reason})"
