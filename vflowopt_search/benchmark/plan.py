"""What a benchmark is to measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vflowopt_search.benchmark.prompts import Size
from vflowopt_search.errors import BenchmarkError

Progress = Callable[[int, int], None]
"""Called with (answers given, answers in total)."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        batch_sizes: prompts answered together.
        resolutions: of the images.
        new_tokens: tokens of every answer, at least 2.
        repeats: measurements of each side, at least 1.
    """

    batch_sizes: Sequence[int] = (1,)
    resolutions: Sequence[Size] = ((672, 672),)
    new_tokens: int = 32
    repeats: int = 5

    def __post_init__(self) -> None:
        if self.new_tokens < 2 or self.repeats < 1 or min(self.batch_sizes, default=0) < 1:
            raise BenchmarkError(
                f"{self.new_tokens} new tokens, {self.repeats} repeats and batches of "
                f"{list(self.batch_sizes)} were asked for; give at least 2 tokens (the first comes "
                "with the prompt), 1 repeat and batches of 1"
            )
        if min((side for size in self.resolutions for side in size), default=0) < 1:
            raise BenchmarkError(
                f"resolutions are {list(self.resolutions)} but need a width and a height of at "
                "least 1 pixel; correct them"
            )

    @property
    def kinds(self) -> list[tuple[int, Size]]:
        """Every batch size at every resolution."""
        return [(rows, size) for size in self.resolutions for rows in self.batch_sizes]
