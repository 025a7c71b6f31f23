"""The phases of training, in steps, and the learning rate at each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from vflowopt_search.testbed.questions import KINDS
from vflowopt_search.testbed.scenes import SceneStyle

PhaseKind = Literal["tower", "tile", "full"]

EASY_KINDS = ("colour", "shape", "digit", "exist")
READING_KINDS = ("digit", "digit_by_colour", "digit_by_shape", "shape_by_digit")
HARD_KINDS = ("count", "count", "extreme", "extreme", "exist")
TILE_KINDS = tuple(kind for kind in KINDS if kind not in ("digit_by_colour", "digit_by_shape"))

TOWER_STYLE = SceneStyle(side=112, min_objects=3, max_objects=7, min_size=20, max_size=26)
TILE_STYLE = SceneStyle(side=56, min_objects=2, max_objects=4, min_size=20, max_size=26)
READING_STYLE = SceneStyle(side=56, min_objects=1, max_objects=4, min_size=18, max_size=25)
FULL_STYLE = SceneStyle(side=112, min_objects=3, max_objects=8, min_size=18, max_size=25)


@dataclass(frozen=True)
class Phase:
    """One part of training: steps `start` to `start + num_steps`, on one kind of input.

    Without `ground`, patches that show no object are not asked for a shape and a digit: four of
    five show none, and would drown what there is to learn about digits.
    """

    kind: PhaseKind
    batch_size: int
    style: SceneStyle
    start: int = 0
    num_steps: int = 0
    dense_weight: float = 1.0
    ground: bool = True
    kinds: tuple[str, ...] = KINDS
    easy_steps: int = 0
    decay_share: float = 0.0
    questions_per_image: int = 8
    warmup_steps: int = 40

    @property
    def end(self) -> int:
        """First step after this phase."""
        return self.start + self.num_steps

    def kinds_at(self, step: int) -> tuple[str, ...]:
        """Kinds of questions asked at a step: the easy ones first."""
        return EASY_KINDS if step - self.start < self.easy_steps else self.kinds

    def rate_at(self, step: int) -> float:
        """Share of the peak learning rate: warm-up, plateau, and a linear end."""
        done = step - self.start
        decay_steps = self.decay_share * self.num_steps
        rising = (done + 1) / self.warmup_steps
        falling = (self.num_steps - done) / decay_steps if decay_steps else 1.0
        return min(1.0, rising, falling)


RECIPE = (
    # what each patch shows
    Phase("tower", 24, TOWER_STYLE),
    # questions, on few tokens
    Phase("tile", 12, TILE_STYLE, kinds=TILE_KINDS, easy_steps=875),
    # what each patch of an object shows
    Phase("tower", 24, FULL_STYLE, ground=False),
    # questions, on all tokens
    Phase("full", 8, FULL_STYLE, ground=False),
    # which digit is where, on few tokens
    Phase("tile", 12, READING_STYLE, ground=False, kinds=READING_KINDS),
    Phase("full", 8, FULL_STYLE, ground=False),
    # everything, what is hard more often, at a falling rate
    Phase("full", 8, FULL_STYLE, ground=False, kinds=(*KINDS, *HARD_KINDS), decay_share=0.6),
)
DEFAULT_STEPS = (1100, 1750, 1000, 550, 600, 400, 1200)


@dataclass(frozen=True)
class Curriculum:
    """All phases in order, the seed of the data and the peak learning rate."""

    phases: tuple[Phase, ...]
    seed: int = 0
    peak_rate: float = 2e-3

    @property
    def num_steps(self) -> int:
        """Steps of all phases together."""
        return self.phases[-1].end

    def phase_at(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        return next(phase for phase in self.phases if step < phase.end)


def make_curriculum(
    steps: tuple[int, ...] = DEFAULT_STEPS, seed: int = 0, peak_rate: float = 2e-3
) -> Curriculum:
    """The recipe of the shipped weights, or one of the same form with other numbers of steps."""
    starts = (0, *accumulate(steps))
    recipe = zip(RECIPE, starts, steps, strict=False)
    phases = tuple(replace(phase, start=start, num_steps=num) for phase, start, num in recipe)
    return Curriculum(phases, seed, peak_rate)
