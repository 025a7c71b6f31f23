"""Accuracy of answers, with and without pruning, on labelled samples.

Shape suffixes: B = samples of a batch.
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vflowopt_search.adapters.feeding import feeding
from vflowopt_search.adapters.loading import pixel_scale
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.deploy import attached_engine
from vflowopt_search.errors import CalibrationError
from vflowopt_search.objective import SignalSource
from vflowopt_search.pruning.occupied import refuse_if_pruned
from vflowopt_search.reference.attention_maps import AttentionMaps
from vflowopt_search.reference.encoder import Progress, prepare
from vflowopt_search.reference.prepared import batches
from vflowopt_search.reference.shelf import GB, MEMORY_GB, MemoryShelf
from vflowopt_search.selfcheck.check import require_checked
from vflowopt_search.strategy import Strategy


@dataclass(frozen=True)
class Accuracy:
    """Which answers were right.

    Attributes:
        correct: one entry per sample.
        groups: the group (question type, say) of each sample, None without one.
        answers: what the model answered.
    """

    correct: tuple[bool, ...]
    groups: tuple[str | None, ...]
    answers: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0..1."""
        return sum(self.correct) / len(self.correct)

    def by_group(self) -> dict[str, float]:
        """Share of right answers in each group that has a name."""
        members: dict[str, list[bool]] = defaultdict(list)
        for correct, group in zip(self.correct, self.groups, strict=True):
            if group is not None:
                members[group].append(correct)
        return {group: sum(each) / len(each) for group, each in sorted(members.items())}


def evaluate_accuracy(
    model: nn.Module,
    processor: Any,
    samples: Sequence[Sample],
    strategies: Mapping[str, Strategy | None],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 8,
    progress: Progress | None = None,
) -> dict[str, Accuracy]:
    """Greedy answers under each strategy (None: unpruned), compared after normalisation.

    Images are encoded once for all strategies.

    Args:
        model: a loaded model of a supported family.
        processor: its processor.
        samples: labelled samples.
        strategies: name → strategy.
        batch_size: samples to a batch.
        max_new_tokens: longest answer.
        progress: called with (answers given, answers in total).

    Raises:
        CalibrationError: a sample has no answer to compare with.
    """
    unlabelled = [sample.id for sample in samples if sample.answer is None]
    if unlabelled or not samples:
        raise CalibrationError(
            f"{len(unlabelled)} of {len(samples)} samples have no answer to compare with "
            f"(first: {unlabelled[:1]}); name the column that holds the answers"
        )
    refuse_if_pruned(model)
    adapter = adapter_for(model)
    require_checked(adapter, processor)
    pixels = pixel_scale(processor) if adapter.knows_grid else None
    prepared = prepare(adapter, processor, samples, pixels)
    shelf = MemoryShelf(round(GB * MEMORY_GB))
    maps = AttentionMaps(adapter, processor, samples, prepared, shelf)
    source = SignalSource(prepared, maps)
    size = min(batch_size, prepared.batch_size())
    results, done, total = {}, 0, len(samples) * len(strategies)
    for name, strategy in strategies.items():
        answers: list[str] = []
        for chunk in batches(len(samples), size):
            answers += _answer(source, processor, strategy, chunk, max_new_tokens)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
        correct = [matches(a, s.answer or "") for a, s in zip(answers, samples, strict=True)]
        groups = tuple(sample.group for sample in samples)
        results[name] = Accuracy(tuple(correct), groups, tuple(answers))
    return results


def _answer(
    source: SignalSource,
    processor: Any,
    strategy: Strategy | None,
    indices: Sequence[int],
    max_new_tokens: int,
) -> list[str]:
    """Greedy answers to one batch."""
    model: Any = source.prepared.adapter.model
    with ExitStack() as stack:
        if strategy is None:
            inputs = source.prepared.inputs(indices)
        else:
            engine = stack.enter_context(attached_engine(model, strategy))
            inputs = source.feed(engine, indices)
        stack.enter_context(torch.inference_mode())
        given = stack.enter_context(feeding(source.prepared.adapter, inputs))
        # one beam: older transformers cannot repeat features for more
        ids = model.generate(**given, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    new = ids[:, inputs["input_ids"].shape[1] :]
    answers: list[str] = processor.batch_decode(new, skip_special_tokens=True)
    return answers


def matches(answer: str, truth: str) -> bool:
    """Exact match after lower-casing, stripping punctuation and squeezing white space."""
    return normalised(answer) == normalised(truth)


def normalised(text: str) -> str:
    """Lower case, no punctuation at the ends of words, single spaces."""
    words = (word.strip(string.punctuation) for word in text.lower().split())
    return " ".join(word for word in words if word)
