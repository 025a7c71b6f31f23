"""Which answers are known and which are missing, of which samples and under which strategies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vflowopt_search.calibration.refusals import Refusal, Refusals, find_refusals, require_few
from vflowopt_search.calibration.samples import Sample, fingerprint
from vflowopt_search.evaluate.ledger import Ledger
from vflowopt_search.reference.encoder import first_with_same_images
from vflowopt_search.strategy import Strategy

WINDOW = 256
"""Samples whose images are held encoded at a time."""

Strategies = Mapping[str, Strategy | None]
"""Name to strategy; None is the unpruned model."""


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: the answer, special tokens left out.
        seconds: its share of the time that its batch took, vision encoder left out.
        retained: share of the sample's visual tokens alive, mean over layers; None without any.
        batch: of answers with the same batch, which met the same machine, times may be compared.
    """

    text: str
    seconds: float
    retained: float | None
    batch: str = ""


@dataclass(frozen=True)
class Answered:
    """Samples and what was answered to each.

    Attributes:
        samples: those that were asked.
        answers: name of a strategy to its answers, in the order of the samples.
        refusals: number of a sample, among those that were given, to why it was not asked.
    """

    samples: tuple[Sample, ...]
    answers: Mapping[str, Sequence[Answer]]
    refusals: Refusals


def content_of(strategy: Strategy | None) -> dict[str, Any] | None:
    """What of a strategy decides what is pruned: all but its name, its claims and its origin."""
    return None if strategy is None else strategy.content()


def item_of(sample: Sample) -> str:
    """A sample's id and the fingerprint of what it asks and shows."""
    return f"{sample.id} {fingerprint([sample])[:16]}"


class Queue:
    """Which answers are missing, and where those that came are kept."""

    def __init__(
        self,
        samples: Sequence[Sample],
        strategies: Strategies,
        ledger: Ledger,
        settings: Mapping[str, Any],
        processor: Any,
    ) -> None:
        """Look up what is known.

        Args:
            samples: what is asked.
            strategies: who is asked.
            ledger: knows and keeps answers.
            settings: all that answers depend on besides strategy and sample.
            processor: the model's.
        """
        self._ledger, self._names, self._turn = ledger, list(strategies), 0
        self._samples, self._processor = samples, processor
        self._refusals: dict[int, Refusal] = {}
        # samples that show the same images follow each other: they are encoded once
        first = first_with_same_images(samples)
        self._order = sorted(range(len(samples)), key=lambda i: (first[i], i))
        self._items = [item_of(sample) for sample in samples]
        self._headings = {
            name: ledger.heading(
                {"measured": "answers", **settings, "strategy": content_of(strategy)}
            )
            for name, strategy in strategies.items()
        }
        self._count()

    def _count(self) -> None:
        """How many answers there are, and how many are known."""
        self.total = len(self._order) * len(self._names)
        self.known = self.total - sum(
            self.is_missing(name, i) for name in self._names for i in self._order
        )

    def is_missing(self, name: str, index: int) -> bool:
        """Whether a strategy has not answered a sample yet."""
        return self._ledger.known(self._headings[name], self._items[index]) is None

    def next_window(self) -> list[int]:
        """The next samples that some strategy has not answered; empty at the end."""
        missing = (i for i in self._order if any(self.is_missing(n, i) for n in self._names))
        return [i for i, _ in zip(missing, range(WINDOW), strict=False)]

    def leave_out_of(self, window: Sequence[int]) -> bool:
        """Pass over samples of a window that the processor does not take; whether there are any.

        Raises:
            CalibrationError: by now they are too many of all.
        """
        found = find_refusals(self._processor, [self._samples[i] for i in window])
        self._refusals |= {window[place]: refusal for place, refusal in found.items()}
        require_few(self._refusals, len(self._samples))
        self._order = [i for i in self._order if i not in self._refusals]
        self._count()
        return bool(found)

    def in_turn(self) -> Iterator[str]:
        """All strategies, each time another one first: no one always meets a cold machine."""
        self._turn += 1
        for place in range(len(self._names)):
            yield self._names[(place + self._turn - 1) % len(self._names)]

    def file(self, name: str, indices: Sequence[int], answers: Sequence[Answer]) -> None:
        """Keep the answers of a batch."""
        measured = {self._items[i]: vars(a) for i, a in zip(indices, answers, strict=True)}
        self._ledger.add(self._headings[name], measured)
        self.known += len(indices)

    def answered(self) -> Answered:
        """All answers, in the order of the samples."""
        known, asked = self._ledger.known, sorted(self._order)
        answers = {
            name: [Answer(**known(heading, self._items[i]) or {}) for i in asked]
            for name, heading in self._headings.items()
        }
        return Answered(tuple(self._samples[i] for i in asked), answers, self._refusals)
