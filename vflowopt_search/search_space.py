"""What may be searched: a YAML file, bound to a model, turns a trial's values into a Strategy.

Parameters, in the order in which a trial is asked for them: `num_stages`, `stage2_depth`,
`stage2_keep`, `stage3_depth`, ..., `score`, `vision_depth`, `context_threshold`,
`entropy_weight`, `recycling`, `recycling_cell`, `positions`, `separators`. What the file fixes
is not asked for; stages and the cell are asked for only where they exist.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, model_validator

from vflowopt_search.budget import close_budget
from vflowopt_search.depths import check_room, fractions_for, stage_layers
from vflowopt_search.documents import load_shipped
from vflowopt_search.parameters import Assignment, Parameter, Scalar, SpacePart, Suggests, one_of
from vflowopt_search.resources import search_spaces_folder
from vflowopt_search.space_parts import ImportanceSpace, RecyclingSpace, StagesSpace, StartingPoint
from vflowopt_search.strategy import (
    Budget,
    Importance,
    ModelIdentity,
    PixelScale,
    Positions,
    Separators,
    Stage,
    Strategy,
)


@dataclass(frozen=True)
class ModelFacts:
    """What a space has to know of a model.

    Args:
        identity: the model that strategies will name.
        pixels: how its processor normalises pixels; None where entropy cannot be computed.
        vision_layers_available: encoder layers, rising, whose attention can be read.
        packs_positions: whether the positions of kept tokens can be made consecutive.
        has_separators: whether there are row separators between visual tokens.
        recycles: whether it is known where tokens lie, so that they can be merged by grid cell.
        scores: importance scores that it offers.
        layers_note: one sentence if fewer layers are available than the encoder has, or if their
            attention cannot be kept between trials; None if nothing is to be said.
    """

    identity: ModelIdentity
    pixels: PixelScale | None
    vision_layers_available: tuple[int, ...]
    packs_positions: bool = True
    has_separators: bool = True
    recycles: bool = True
    scores: tuple[str, ...] = ("received_attention", "text_attention", "uniform", "random")
    layers_note: str | None = None


class SearchSpace(SpacePart):
    """What may be searched, for any model."""

    format: Literal["vflowopt-space/1"]
    description: Annotated[str, Field(min_length=1)]
    """One sentence for `vflowopt-search spaces`."""
    stages: StagesSpace
    importance: ImportanceSpace
    recycling: RecyclingSpace
    positions: Annotated[Parameter, one_of("original", "packed")]
    separators: Annotated[Parameter, one_of("keep", "drop")]
    textbook: dict[str, StartingPoint] = Field(default_factory=dict)
    """Named strategies to try first."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.stages.depths[0].fixed != 0 and True in self.recycling.enabled.possible:
            raise ValueError(
                f"recycling.enabled may be true but the first stage is at depth "
                f"{self.stages.depths[0].fixed}; recycle with a stage at 0 only, or set it to false"
            )
        for name, point in self.textbook.items():
            try:
                point.check(self.asked(point), self.stages.depths, self.recycles(point))
            except ValueError as error:
                raise ValueError(f"`textbook.{name}`: {error}") from None
        return self

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """The space of a shipped name (`vflowopt`) or of a YAML file.

        Raises:
            SearchSpaceError: no such file, or a wrong one; names file, field and rule.
        """
        return load_shipped(cls, name_or_path, search_spaces_folder())

    def shared(self) -> Iterator[tuple[str, Parameter]]:
        """Name and parameter of all that does not depend on the number of stages."""
        yield "score", self.importance.score
        if self.importance.later_score is not None:
            yield "later_score", self.importance.later_score
        yield "vision_depth", self.importance.vision_depth
        yield "context_threshold", self.importance.context_threshold
        yield "entropy_weight", self.importance.entropy_weight
        yield "recycling", self.recycling.enabled
        yield "recycling_cell", self.recycling.cell
        yield "positions", self.positions
        yield "separators", self.separators

    def searched(self) -> dict[str, Parameter]:
        """Every parameter that a trial may be asked for, by name."""
        every = {"num_stages": self.stages.count}
        for number, parameter in enumerate(self.stages.depths[1:], start=2):
            every |= {f"stage{number}_depth": parameter, f"stage{number}_keep": self.stages.keep}
        every |= dict(self.shared())
        if self.recycling.enabled.possible == (False,):
            del every["recycling_cell"]
        return {name: parameter for name, parameter in every.items() if parameter.fixed is None}

    def asked(self, point: StartingPoint) -> Iterator[tuple[str, Parameter, Scalar | None]]:
        """Name, parameter and value of all that a starting point decides, depths apart."""
        yield "num_stages", self.stages.count, len(point.depths)
        for stage, ratio in enumerate(point.keep, start=2):
            yield f"stage{stage}_keep", self.stages.keep, ratio
        for name, parameter in self.shared():
            if name != "recycling_cell" or self.recycles(point):
                yield name, parameter, getattr(point, name)

    def recycles(self, point: StartingPoint) -> bool:
        """Whether a starting point recycles, said by itself or by this space."""
        return bool(self.recycling.enabled.fixed if point.recycling is None else point.recycling)

    def sha256(self) -> str:
        """Fingerprint of all that the space says."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def bind(self, facts: ModelFacts) -> BoundSpace:
        """This space for one model; what the model cannot have is fixed, see `notes`.

        Raises:
            SearchSpaceError: the model has too few decoder layers, or lacks a score.
        """
        check_room(self.stages.depths, facts.identity.decoder_layers)
        self.importance.require_offered(facts.scores, facts.identity.model_type)
        missing = list(_missing(self, facts))
        given = {name: parameter for name, parameter, _ in missing}
        space = _with_fixed(self, given)
        notes = [note for _, _, note in missing]
        if facts.layers_note is not None and space.importance.vision_depth.fixed is None:
            notes.append(facts.layers_note)
        return BoundSpace(space, facts, tuple(notes))


def _missing(space: SearchSpace, facts: ModelFacts) -> Iterator[tuple[str, Parameter, str]]:
    """What the space would set but the model cannot have: name, what it is fixed to, why."""
    if facts.pixels is None and space.importance.entropy_weight.possible != (0,):
        off = Parameter.model_validate(0.0)
        yield "entropy_weight", off, "entropy_weight is fixed at 0: the model has no pixels to use"
    if not facts.packs_positions and "packed" in space.positions.possible:
        kept = Parameter.model_validate("original")
        yield "positions", kept, "positions are fixed at original: the model cannot pack them"
    if not facts.recycles and True in space.recycling.enabled.possible:
        lost = Parameter.model_validate(False)
        yield "recycling", lost, "recycling is fixed at false: where tokens lie is not known"
    if not facts.has_separators and space.separators.fixed is None:
        drop = Parameter.model_validate("drop")
        yield "separators", drop, "separators are fixed at drop: the model has none"
    if len(facts.vision_layers_available) <= 1 and space.importance.vision_depth.fixed is None:
        last = Parameter.model_validate(1.0)
        num = len(facts.vision_layers_available)
        yield "vision_depth", last, f"vision_depth is fixed: {num} encoder layers can be read"


def _with_fixed(space: SearchSpace, given: dict[str, Parameter]) -> SearchSpace:
    """The space with these parameters instead; starting points say nothing of them any more."""
    silent: dict[str, Any] = dict.fromkeys(given)
    points = {k: point.model_copy(update=silent) for k, point in space.textbook.items()}
    inside = {k: p for k, p in given.items() if k in ImportanceSpace.model_fields}
    outside: dict[str, Any] = {k: p for k, p in given.items() if k not in inside}
    if "recycling" in given:
        enabled = {"enabled": given["recycling"]}
        outside["recycling"] = space.recycling.model_copy(update=enabled)
    importance = space.importance.model_copy(update=inside)
    return space.model_copy(update={**outside, "importance": importance, "textbook": points})


@dataclass(frozen=True)
class BoundSpace:
    """A search space for one model.

    Args:
        space: what is searched, less what the model cannot have.
        facts: the model.
        notes: one sentence for each parameter that was fixed because of the model, and one if not
            all layers of its vision encoder can be searched.
    """

    space: SearchSpace
    facts: ModelFacts
    notes: tuple[str, ...] = ()

    def suggest(self, trial: Suggests, retain: float, name: str = "trial") -> Strategy:
        """Ask `trial` for values; the strategy they mean retains `retain` exactly.

        Raises:
            BudgetError: no keep ratios retain that with the first stage where the space has it.
        """
        num_layers = self.facts.identity.decoder_layers
        layers, relative = self._suggest_stages(trial)
        ratios = close_budget(layers, relative, num_layers, retain)
        importance = self._suggest_importance(trial)
        later_score = self.space.importance.suggest_later_score(trial, importance.score)
        scores = [None, *[later_score] * (len(layers) - 1)]
        return Strategy(
            name=name,
            model=self.facts.identity,
            stages=tuple(
                Stage(layer=layer, keep_ratio=ratio, score=score)
                for layer, ratio, score in zip(layers, ratios, scores, strict=True)
            ),
            importance=importance,
            recycling=self.space.recycling.suggest(trial),
            # The file allows only the words of these types.
            positions=cast(Positions, self.space.positions.suggest(trial, "positions")),
            separators=cast(Separators, self.space.separators.suggest(trial, "separators")),
            budget=Budget(mean_retained=retain),
        )

    def _suggest_stages(self, trial: Suggests) -> tuple[list[int], list[float]]:
        stages = self.space.stages
        depths = stages.depths[: stages.count.suggest_whole(trial, "num_stages")]
        layers = stage_layers(
            depths,
            self.facts.identity.decoder_layers,
            lambda stage: depths[stage].suggest_number(trial, f"stage{stage + 1}_depth"),
        )
        return layers, [
            stages.keep.suggest_number(trial, f"stage{stage}_keep")
            for stage in range(2, len(depths) + 1)
        ]

    def _suggest_importance(self, trial: Suggests) -> Importance:
        space = self.space.importance
        score = str(space.score.suggest(trial, "score"))
        vision_layer = self._vision_layer(space.vision_depth.suggest_number(trial, "vision_depth"))
        threshold = space.context_threshold.suggest_number(trial, "context_threshold")
        entropy = space.entropy_weight.suggest_number(trial, "entropy_weight")
        return Importance(
            score=score,
            vision_layer=vision_layer,
            context_threshold=threshold,
            entropy_weight=entropy,
            pixels=self.facts.pixels if entropy != 0 else None,
        )

    def _vision_layer(self, depth: float) -> int | None:
        available = self.facts.vision_layers_available
        if not available:
            return None
        return available[min(len(available) - 1, int(depth * len(available)))]

    def searched(self) -> dict[str, Parameter]:
        """Every parameter that a trial may be asked for, by name."""
        return self.space.searched()

    def textbook(self) -> dict[str, Assignment]:
        """Named parameter values to try first; each gives a strategy within the ranges.

        Raises:
            SearchSpaceError: a searched depth does not reach a starting point's layer.
        """
        return {name: self._assignment(point) for name, point in self.space.textbook.items()}

    def _assignment(self, point: StartingPoint) -> Assignment:
        values = {
            name: value
            for name, parameter, value in self.space.asked(point)
            if parameter.fixed is None and value is not None
        }
        num_layers = self.facts.identity.decoder_layers
        depths = self.space.stages.depths[: len(point.depths)]
        for stage, fraction in fractions_for(depths, point.depths, num_layers).items():
            values[f"stage{stage + 1}_depth"] = fraction
        return values


def list_spaces() -> list[tuple[str, str]]:
    """Name and description of each shipped search space, by name."""
    files = sorted(search_spaces_folder().glob("*.yaml"), key=lambda file: file.stem)
    return [(file.stem, SearchSpace.load(file).description) for file in files]
