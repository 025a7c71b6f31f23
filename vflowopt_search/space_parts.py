"""The parts of a search-space file, in the order in which the file has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from vflowopt_search.depths import depth, share_of_depth
from vflowopt_search.errors import SearchSpaceError
from vflowopt_search.parameters import (
    Parameter,
    Scalar,
    SpacePart,
    Suggests,
    numbers,
    one_of,
    whole_numbers,
    words,
)
from vflowopt_search.strategy import Recycling


class StagesSpace(SpacePart):
    """How many stages, at which depths, and how much each keeps relative to the others."""

    count: Annotated[Parameter, whole_numbers(1)]
    """Number of stages."""
    depths: Annotated[tuple[Annotated[Parameter, depth()], ...], Field(strict=False, min_length=1)]
    """One per stage: a fixed share of the depth, or a range of the layers still free below it."""
    keep: Annotated[Parameter, numbers(0, 1, low_allowed=False)]
    """Relative keep ratio of each stage after the first; the budget scales them."""

    @model_validator(mode="after")
    def _a_depth_for_each(self) -> Self:
        most = int(max(float(count) for count in self.count.possible))
        if most != len(self.depths):
            raise ValueError(
                f"count allows {most} stages but depths names {len(self.depths)}; give one depth "
                f"for each stage"
            )
        if self.depths[0].fixed is None:
            raise ValueError(
                "the first of depths is a range but must be fixed, for a budget cannot be met "
                "by pruning too late; write 0"
            )
        return self


class ImportanceSpace(SpacePart):
    """How tokens may be ranked (algorithms 1.1)."""

    score: Annotated[Parameter, words()]
    vision_depth: Annotated[Parameter, numbers(0, 1)]
    """Place among the encoder layers whose attention can be read: 0 the first, 1 the last."""
    context_threshold: Annotated[Parameter, numbers(0, 1e6)]
    entropy_weight: Annotated[Parameter, numbers(-1, 1)]
    later_score: Annotated[Parameter, words()] | None = None
    """By what the stages after the first rank; as the first where it is left out."""

    def require_offered(self, offered: Sequence[str], model_type: str) -> None:
        """Raise SearchSpaceError for a score that a model lacks: no other would mean the same."""
        later = () if self.later_score is None else self.later_score.possible
        for name in (*self.score.possible, *later):
            if name not in offered:
                raise SearchSpaceError(
                    f"the space scores by {name}, which {model_type} models do not offer; use the "
                    f"space by-structure, or write one that scores by {', '.join(offered)}"
                )

    def suggest_later_score(self, trial: Suggests, first: str) -> str | None:
        """The score of the stages after the first, None where it is that of the first."""
        score = first
        if self.later_score is not None:
            score = str(self.later_score.suggest(trial, "later_score"))
        return None if score == first else score


class RecyclingSpace(SpacePart):
    """Whether tokens that leave at layer 0 are merged, and by cells of which side."""

    enabled: Annotated[Parameter, one_of(True, False)]
    cell: Annotated[Parameter, numbers(1, 1e6)]

    def suggest(self, trial: Suggests) -> Recycling | None:
        """Ask for the cell only where tokens are recycled."""
        if not self.enabled.suggest(trial, "recycling"):
            return None
        return Recycling(cell=self.cell.suggest_number(trial, "recycling_cell"))


class StartingPoint(SpacePart):
    """A textbook strategy in the words of the space; what the space fixes may be left out."""

    depths: Annotated[
        tuple[Annotated[int | str, AfterValidator(share_of_depth)], ...],
        Field(strict=False, min_length=1),
    ]
    """Share of the depth of each stage: `0`, or `p/q` below 1."""
    keep: Annotated[tuple[float, ...], Field(strict=False)] = ()
    """Relative keep ratio of each stage after the first."""
    score: str | None = None
    later_score: str | None = None
    vision_depth: float | None = None
    context_threshold: float | None = None
    entropy_weight: float | None = None
    recycling: bool | None = None
    recycling_cell: float | None = None
    positions: str | None = None
    separators: str | None = None

    @model_validator(mode="after")
    def _a_ratio_for_each(self) -> Self:
        if len(self.keep) != len(self.depths) - 1:
            raise ValueError(
                f"{len(self.depths)} depths and {len(self.keep)} keep ratios are given, but each "
                f"stage after the first needs one ratio; give {len(self.depths) - 1}"
            )
        return self

    def check(
        self,
        asked: Iterable[tuple[str, Parameter, Scalar | None]],
        depths: Sequence[Parameter],
        recycles: bool,
    ) -> None:
        """Refuse (ValueError) a value that the space cannot take, or one that is left open.

        Args:
            asked: name, parameter and value of all that this decides, depths apart.
            depths: one per stage that the space may have.
            recycles: whether this recycles, said by itself or by the space.
        """
        for name, parameter, value in asked:
            if value is None and parameter.fixed is None:
                raise ValueError(f"{name} is searched but has no value here; give it one")
            if value is not None and not parameter.holds(value):
                raise ValueError(f"{name} is {value!r} but must be {parameter}; correct it")
        for share, parameter in zip(self.depths, depths, strict=False):
            if parameter.fixed is not None and not parameter.holds(share):
                raise ValueError(f"a depth is {share!r} but must be {parameter}; correct it")
        if self.recycling_cell is not None and not recycles:
            raise ValueError(
                f"recycling_cell is {self.recycling_cell} without recycling; remove it or set "
                f"recycling to true"
            )
