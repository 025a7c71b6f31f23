"""A study recipe: everything that a search needs to be run again, in one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from vflowopt_search.documents import Value, load_shipped
from vflowopt_search.errors import SearchSpaceError, VFlowOptError
from vflowopt_search.resources import studies_folder

Word = Annotated[str, Field(min_length=1)]


class StudyRecipe(Value):
    """Which model, which samples, which space, which budget, how long, which seed."""

    refusal: ClassVar[type[VFlowOptError]] = SearchSpaceError

    format: Literal["vflowopt-study/1"]
    description: str = ""
    """One sentence, or none."""
    model: Word
    """`testbed`, a hub name or a folder."""
    calibration: Word
    """`testbed`, a data set's name, a folder or a file."""
    space: Word
    """Name of a shipped search space or path of a YAML file."""
    retain: Annotated[float, Field(gt=0, le=1)]
    """Mean retained: share of visual tokens alive, averaged over decoder layers."""
    trials: Annotated[int, Field(ge=1)]
    samples: Annotated[int, Field(ge=1)]
    """Calibration samples."""
    seed: Annotated[int, Field(ge=0)] = 0
    metric: Literal[
        "last_token_cosine",
        "flow",
        "kl",
        "total_variation",
        "answer_cosine",
        "answer_kl",
        "answer_total_variation",
    ] = "last_token_cosine"
    """Divergence between the unpruned and the pruned model."""

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """The recipe of a shipped name (`quickstart`) or of a YAML file.

        Raises:
            SearchSpaceError: no such file, or a wrong one; names file, field and rule.
        """
        return load_shipped(cls, name_or_path, studies_folder())
