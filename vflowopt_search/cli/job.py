"""What a search is asked to do: a study recipe, changed by what was typed, and where it goes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from vflowopt_search import run_folder
from vflowopt_search.cli import typed
from vflowopt_search.errors import CalibrationError
from vflowopt_search.model_source import SHIPPED, ModelSource
from vflowopt_search.recipe import StudyRecipe

if TYPE_CHECKING:
    from vflowopt_search.sampling import SamplerName

QUICKSTART = "quickstart"
RUNS = Path("runs")
COLUMNS = ("image", "prompt", "answer", "id", "group", "video", "options")


@dataclass(frozen=True)
class DataOptions:
    """How calibration data is read.

    Args:
        split: of a dataset; None takes its only or training one.
        columns: our name to theirs; what is missing is guessed.
        prompt: asked about every image, where the data has no prompts.
        turns: of conversations the "first" exchange, or "all" up to the last question.
        frames: taken of each video, evenly spread; None is 8.
        fps: frames of each second of a video instead.
        strict: stop at the first sample that cannot be used; says nothing of the data.
    """

    split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    prompt: str | None = None
    turns: Literal["first", "all"] = "first"
    frames: int | None = None
    fps: float | None = None
    strict: bool = field(default=False, compare=False)

    @property
    def typed(self) -> list[str]:
        """Names of the options that say something."""
        usual = DataOptions()
        told = [each.name for each in fields(self) if each.compare]
        changed = [name for name in told if getattr(self, name) != vars(usual)[name]]
        if self.columns.keys() == {"video"}:
            changed[changed.index("columns")] = "video-column"
        return [f"--{name}" for name in changed]

    def refuse_for_shipped(self, what: str, option: str) -> None:
        """Refuse options that describe data of one's own, where the data is the bundled one.

        Args:
            what: the data, in words.
            option: that names other data.

        Raises:
            CalibrationError: names the options.
        """
        if self.typed:
            verb = "describes" if len(self.typed) == 1 else "describe"
            raise CalibrationError(
                f"{', '.join(self.typed)} {verb} data of your own, but {what} are the bundled "
                f"ones; name your data with {option}"
            )


@dataclass(frozen=True)
class Job:
    """One search.

    Args:
        recipe: what is searched, on what, how long.
        source: how the model is loaded.
        data: how the samples are read.
        output: folder of the results; the study is called after it.
        storage: Optuna URL; None is a journal in the output folder.
        batch_size: samples measured together, of each strategy; None chooses.
        trials_per_batch: strategies measured together.
        workers: processes that run trials at the same time.
        devices: one for each worker in turn; none: that of `source`, or all GPUs where it is auto.
        sampler: who draws the strategies (see `StudySettings`).
        racing: stop hopeless trials early.
        cache: folder of what does not depend on the trial; None is the user's cache folder.
        cache_gb: bound on that folder; None is 20.
        held_out: measure the best strategy on samples that no trial sees.
        halve: where fewer than twice the recipe's samples can be used, search on half of them.
        accuracy: measure accuracy on held-out questions, which only the shipped model has.
        self_check: make sure that the model is pruned correctly, before anything is measured.
    """

    recipe: StudyRecipe
    source: ModelSource
    data: DataOptions
    output: Path
    storage: str | None = None
    batch_size: int | None = None
    trials_per_batch: int = 1
    workers: int = 1
    devices: tuple[str, ...] = ()
    sampler: SamplerName = "tpe"
    racing: bool = True
    cache: Path | None = None
    cache_gb: float | None = None
    held_out: bool = True
    halve: bool = False
    accuracy: bool = True
    self_check: bool = True

    @property
    def study_name(self) -> str:
        """Name of the study and of the strategy it exports."""
        return self.output.resolve().name

    def with_at_least(self, trials: int) -> Job:
        """The same of so many trials, where an earlier run made more than are asked for."""
        recipe = self.recipe
        if trials <= recipe.trials:
            return self
        return replace(self, recipe=recipe.model_copy(update={"trials": trials}))

    @property
    def storage_or_journal(self) -> str | Path:
        """Where the study lives."""
        return self.storage or self.output / run_folder.JOURNAL


def resolve_recipe(study: str | None, given: dict[str, Any]) -> StudyRecipe:
    """The recipe of `--study`, or the quickstart without a model, changed by what was typed.

    Args:
        study: name or path of a recipe.
        given: fields of a recipe; None where nothing was typed.

    Raises:
        SearchSpaceError: the recipe or a value is wrong.
        typer.BadParameter: a model is named, but no calibration samples.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if study is not None or "model" not in given:
        recipe = StudyRecipe.load(study or QUICKSTART)
        return StudyRecipe(**{**recipe.model_dump(), **given})
    if given["model"] == SHIPPED:
        given.setdefault("calibration", SHIPPED)
    if "calibration" not in given:
        raise typer.BadParameter(
            "a model of your own needs samples: a dataset, a folder of images, JSON, JSONL or "
            "Parquet",
            param_hint="--calibration",
        )
    defaults = {"space": "vflowopt", "retain": 0.10, "trials": 100, "samples": 256}
    about = {"format": "vflowopt-study/1", "description": "As typed on the command line."}
    return StudyRecipe(**{**about, **defaults, **given})


def resolve_output(output: Path | None, study: str | None, model: str | None) -> Path:
    """The asked folder, or one in `runs/` called after the recipe or the model."""
    if output is not None:
        return output
    if study is None and model is not None:
        return RUNS / (Path(model).resolve() if Path(model).exists() else Path(model)).name
    return RUNS / Path(study or QUICKSTART).stem


def parse_columns(text: str | None, video: str | None = None) -> dict[str, str]:
    """`image=picture,prompt=question` as a mapping; `video` is a column named by itself.

    Raises:
        typer.BadParameter: not of this form, or no such field.
    """
    pairs = [part.split("=", 1) for part in text.split(",")] if text else []
    for pair in pairs:
        if len(pair) != 2 or pair[0].strip() not in COLUMNS or not pair[1].strip():
            raise typer.BadParameter(
                f"{'='.join(pair)!r} is not FIELD=COLUMN with a field of {', '.join(COLUMNS)}; "
                f"write image=picture,prompt=question",
                param_hint="--columns",
            )
    columns = {ours.strip(): theirs.strip() for ours, theirs in pairs}
    return columns if video is None else columns | {"video": video}


def parse_devices(text: str | None, device: str) -> tuple[str, ...]:
    """`cuda:0,cuda:1` as names; none of nothing.

    Args:
        text: what was typed.
        device: the one device that was asked for, or auto.

    Raises:
        typer.BadParameter: one is no device, or both were typed.
    """
    if text is None:
        return ()
    if device != "auto":
        raise typer.BadParameter(
            f"{text!r} are the devices of workers, but --device {device} is one for all; give one "
            f"of the two",
            param_hint="--devices",
        )
    try:
        return tuple(typed.device(part.strip()) for part in text.split(","))
    except typer.BadParameter as error:
        error.param_hint = "--devices"
        raise
