"""From what was recorded of the vision encoder to one score per visual token of every row.

Shape suffixes: N = visual tokens of one sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import local
from typing import Any, Protocol

import torch
from torch import Tensor

from vflowopt_search.errors import StrategyError, UnsupportedError
from vflowopt_search.importance.registry import make_score
from vflowopt_search.importance.signals import TokenGrid, VisualSignals
from vflowopt_search.pruning.anatomy import Anatomy
from vflowopt_search.pruning.vision import VisionRecorder
from vflowopt_search.strategy import Stage, Strategy

TEXT = "text_attention"


class PromptScoring(Protocol):
    """What an engine asks of the scores of its prompts; see `Scoring`, which does it for one."""

    @property
    def text_layers(self) -> Sequence[int]:
        """Stage layers that are scored by attention inside the decoder."""

    def recording(self) -> AbstractContextManager[None]:
        """Record the vision encoder inside the `with` block."""

    def begin(self, outputs: Mapping[str, Any] | None) -> None:
        """Take the signals of a prompt's features."""

    def forget_recorded(self) -> None:
        """Drop what was encoded for a prompt that never came."""

    def forget_images(self) -> bool:
        """Drop what was recorded or provided; whether there was anything."""


class _Own(local):
    """What a thread was given for its next prompt."""

    def __init__(self) -> None:
        self.provided: dict[str, VisualSignals] = {}


class Scoring:
    """The scores a strategy names, and the recorder of what they need.

    Attributes:
        text_layers: stage layers that are scored by attention inside the decoder.
    """

    def __init__(self, anatomy: Anatomy, strategy: Strategy) -> None:
        """Raise StrategyError where a stage asks for a score it cannot have."""
        self.strategy, self._own = strategy, _Own()
        names = {self.name_of(stage) for stage in strategy.stages}
        self._scores = {name: make_score(strategy.importance, name) for name in sorted(names)}
        self.text_layers = [s.layer for s in strategy.stages if self.is_text(s)]
        if 0 in self.text_layers:
            raise StrategyError(
                "the stage at layer 0 asks for the score text_attention, but before the language "
                "model no text has been read; use it from layer 1 on"
            )
        needs = frozenset[str]().union(*(score.needs for score in self._scores.values()))
        importance = strategy.importance
        if "attention" in needs and importance.vision_layer is None:
            raise StrategyError(
                f"the score {importance.score} reads the attention of a vision layer, but "
                "importance.vision_layer is null; name the layer (0-based)"
            )
        self.recorder = VisionRecorder(
            anatomy,
            layer=importance.vision_layer if "attention" in needs else None,
            pixels=importance.pixels if "entropy" in needs else None,
        )

    def name_of(self, stage: Stage) -> str:
        """The score by which a stage chooses: its own or the strategy's."""
        return stage.score or self.strategy.importance.score

    def is_text(self, stage: Stage) -> bool:
        """Whether a stage is scored by attention inside the decoder."""
        return TEXT in self._scores[self.name_of(stage)].needs

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the vision encoder inside the `with` block."""
        with self.recorder.recording():
            yield
        self.forget_images()

    def provide(self, signals: VisualSignals, kind: str = "image") -> None:
        """Use these signals for the next prompt, whose features were encoded before."""
        self._own.provided[kind] = signals

    def begin(self, outputs: Mapping[str, Any] | None) -> None:
        """Take the signals of a prompt's features: as provided, else those seen at their encoding.

        Args:
            outputs: kind to the encoder's output, where the model was given it.
        """
        for kind, output in (outputs or {}).items():
            signals = self.recorder.signals_of(output, kind)
            if signals is not None:
                self.recorder.file(kind, signals)
            elif output is not None:  # whatever was encoded last, it was not this
                self.recorder.drop(kind)
        for kind, signals in self._own.provided.items():
            self.recorder.file(kind, signals)
        self._own.provided.clear()

    def forget_recorded(self) -> None:
        """Drop what was encoded for a prompt that never came."""
        self.recorder.forget()

    def forget_images(self) -> bool:
        """Drop what was recorded or provided; whether there was anything."""
        if not self.recorder.calls and not self._own.provided:
            return False
        self.recorder.forget()
        self._own.provided.clear()
        return True

    def vision_scores(
        self, row_tokens: Mapping[str, Sequence[int]]
    ) -> tuple[dict[str, list[Tensor]], list[list[TokenGrid]]]:
        """Vision-side scores of every row, by name, and the rows' grids; uses up the record.

        Args:
            row_tokens: kind ("image", "video") to the visual tokens of each batch row.

        Returns:
            Per score and row one vector, and per row one grid for each image; images come before
            videos.

        Raises:
            UnsupportedError: the images recorded are not those of the prompt.
        """
        num_rows = len(next(iter(row_tokens.values())))
        grids: list[list[TokenGrid]] = [[] for _ in range(num_rows)]
        parts: dict[str, list[list[Tensor]]] = {
            name: [[] for _ in range(num_rows)]
            for name, score in self._scores.items()
            if TEXT not in score.needs
        }
        for kind, counts in row_tokens.items():
            if sum(counts) == 0:
                continue
            signals = self._take(kind, sum(counts))
            rows = assign_images(counts, [len(image.grid) for image in signals.images])
            for row, mine in enumerate(rows):
                grids[row] += [signals.images[i].grid for i in mine]
            for name, rows_of_parts in parts.items():
                score = self._scores[name]
                each = score(signals.only(score.needs))
                for row, mine in enumerate(rows):
                    rows_of_parts[row] += [each[i] for i in mine]
        self.recorder.forget()
        scores = {
            name: [torch.cat(row) if row else EMPTY for row in rows_of_parts]
            for name, rows_of_parts in parts.items()
        }
        return scores, grids

    def _take(self, kind: str, num_tokens: int) -> VisualSignals:
        """The recorded signals, if they are those of a prompt with so many visual tokens."""
        signals = self.recorder.calls.get(kind)
        if signals is None:
            raise UnsupportedError(
                f"the prompt has visual tokens, but no {kind} was encoded inside the "
                "`with pruned(...)` block; pass pixels, or features encoded inside the block, and "
                "prefill in one piece (no prefill_chunk_size)"
            )
        encoded = sum(len(image.grid) for image in signals.images)
        if encoded == 0 or num_tokens % encoded != 0:
            raise UnsupportedError(
                f"the prompt has {num_tokens} visual tokens but the {kind}s encoded give {encoded};"
                f" pass the {kind}s of exactly this prompt, in one piece (no prefill_chunk_size)"
            )
        return signals


EMPTY = torch.zeros(0)


def assign_images(row_tokens: Sequence[int], image_tokens: Sequence[int]) -> list[list[int]]:
    """Which images belong to which batch row, in prompt order.

    Beam search repeats every row of a batch, one after the other, after the images were encoded
    once: then each image belongs to as many consecutive rows.

    Args:
        row_tokens: visual tokens of each row.
        image_tokens: visual tokens of each image encoded.

    Raises:
        UnsupportedError: images and rows do not add up.
    """
    copies = max(1, sum(row_tokens) // max(1, sum(image_tokens)))
    rows: list[list[int]] = []
    image = 0
    for start in range(0, len(row_tokens), copies):
        wanted, mine = row_tokens[start], []
        while wanted > 0 and image < len(image_tokens):
            mine.append(image)
            wanted -= image_tokens[image]
            image += 1
        group = row_tokens[start : start + copies]
        if wanted != 0 or any(tokens != row_tokens[start] for tokens in group):
            raise UnsupportedError(
                f"row {start} has {row_tokens[start]} visual tokens, which no run of the images "
                f"({list(image_tokens)} tokens) adds up to; pass each row's images in order"
            )
        rows.extend(list(mine) for _ in group)
    return rows
