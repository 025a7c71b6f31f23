"""A study recipe: everything that a search needs to be run again, in one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationError

from vflowopt_search.documents import Value, complaint, read_yaml
from vflowopt_search.errors import SearchSpaceError, VFlowOptError
from vflowopt_search.resources import find_shipped, studies_folder

Word = Annotated[str, Field(min_length=1)]


class StudyRecipe(Value):
    """Which model, which samples, which space, which budget, how long, which seed."""

    refusal: ClassVar[type[VFlowOptError]] = SearchSpaceError

    format: Literal["vflowopt-study/1"]
    description: Word
    """One sentence."""
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
        path = find_shipped(name_or_path, studies_folder(), SearchSpaceError)
        try:
            return cls.model_validate(read_yaml(path, SearchSpaceError))
        except ValidationError as error:
            raise SearchSpaceError(f"{path}: {complaint(error)}") from None


def list_recipes() -> list[tuple[str, str]]:
    """Name and description of each shipped study recipe, by name."""
    files = sorted(studies_folder().glob("*.yaml"), key=lambda file: file.stem)
    return [(file.stem, StudyRecipe.load(file).description) for file in files]
