"""A pruning strategy: what to keep, from which layer on, for which model. One versioned file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from vflowopt_search.documents import Value, complaint, digest, parse_json, replace_atomically
from vflowopt_search.errors import StrategyError, VFlowOptError

FORMAT: Final = "vflowopt-strategy/1"

_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_COMPARED = ("model_type", "decoder_layers", "vision_layers", "hidden_size")

Separators = Literal["keep", "drop"]
Positions = Literal["original", "packed"]
Channels = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]
Spread = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)]


class StrategyPart(Value):
    """Anything in a strategy file; a wrong value is a StrategyError."""

    refusal: ClassVar[type[VFlowOptError]] = StrategyError


class ModelIdentity(StrategyPart):
    """The model that a strategy was searched for."""

    model_type: Annotated[str, Field(min_length=1)]
    """`config.model_type` of the whole multimodal model."""
    name: str | None = None
    """Hub name or folder; said, not compared."""
    revision: str | None = None
    """Hub revision; said, not compared."""
    decoder_layers: Annotated[int, Field(ge=1)]
    """Layers of the language model."""
    vision_layers: Annotated[int, Field(ge=0)]
    """Layers of the vision encoder that the language model's features pass through."""
    hidden_size: Annotated[int, Field(ge=1)]
    """Width of the language model."""
    config_sha256: str | None = None
    """Fingerprint of the whole configuration; said, not compared: a fine-tune mostly has the same,
    and another version of transformers may give the same model another."""


class PixelScale(StrategyPart):
    """How the processor normalised pixels, per channel: `(pixel / 255 - mean) / std`."""

    mean: Channels
    std: Spread

    @model_validator(mode="after")
    def _one_std_per_mean(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} channels and std has {len(self.std)}, but both "
                f"describe the same channels; give as many of one as of the other"
            )
        return self


class Importance(StrategyPart):
    """How visual tokens are ranked (VFlowOpt's importance map, algorithms 1.1)."""

    score: Annotated[str, Field(min_length=1)] = "received_attention"
    """Name of an importance score."""
    vision_layer: Annotated[int, Field(ge=0)] | None = None
    """Vision encoder layer whose attention is read, from 0; null for scores without attention."""
    context_threshold: Annotated[float, Field(ge=0)] = 0.0
    """Context tokens receive more than this many times the mean attention."""
    entropy_weight: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Weight of the patch entropy beside the attention."""
    pixels: PixelScale | None = None
    """Needed to get grey values back when the entropy weight is not 0."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the score `random`; other scores do not read it."""

    @model_validator(mode="after")
    def _entropy_needs_pixels(self) -> Self:
        if self.entropy_weight != 0 and self.pixels is None:
            raise ValueError(
                f"entropy_weight is {self.entropy_weight} but entropy needs `pixels`, the "
                f"processor's mean and std; add them or set entropy_weight to 0"
            )
        return self


class Stage(StrategyPart):
    """From decoder layer `layer` on, keep this share of the visual tokens that reached it."""

    layer: Annotated[int, Field(ge=0)]
    """Decoder layer, from 0; 0 is before the language model."""
    keep_ratio: Annotated[float, Field(gt=0, le=1)]
    """Share of the visual tokens alive until here; 1 keeps all."""
    score: Annotated[str, Field(min_length=1)] | None = None
    """An importance score of its own; null uses `importance`."""


class Recycling(StrategyPart):
    """Merge tokens that leave at layer 0 by grid cell, instead of losing them (algorithms 1.2)."""

    cell: Annotated[float, Field(ge=1)]
    """Side of a cell, in tokens."""


class Budget(StrategyPart):
    """What the strategy promises to keep."""

    mean_retained: Annotated[float, Field(gt=0, le=1)]
    """Share of visual tokens alive, averaged over decoder layers (algorithms 1.4)."""


class Objective(StrategyPart):
    """What the search measured for this strategy."""

    divergence: float | None = None
    """Mean over the calibration samples; lower is better."""
    metric: Annotated[str, Field(min_length=1)]
    """Name of the divergence."""
    held_out: float | None = None
    """The same mean on samples that the search did not see."""


class CalibrationIdentity(StrategyPart):
    """The samples that the search looked at."""

    name: str
    samples: Annotated[int, Field(ge=1)]
    sha256: str
    held_out: Annotated[int, Field(ge=1)] | None = None
    """Other samples, on which only the best strategy was measured."""


class Provenance(StrategyPart):
    """Where the strategy comes from."""

    study: str | None = None
    trial: Annotated[int, Field(ge=0)] | None = None
    textbook: str | None = None
    """The textbook strategy that this is, where others were tried and none was better."""
    objective: Objective | None = None
    calibration: CalibrationIdentity | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    """Package name to version."""
    created: str | None = None
    """Time of writing, ISO 8601."""


class Strategy(StrategyPart):
    """What to keep, from which decoder layer on, for which model."""

    format: Literal["vflowopt-strategy/1"] = FORMAT
    """Version of the file's meaning; this package reads and writes the one."""
    name: Annotated[str, Field(min_length=1)]
    """What people call it."""
    model: ModelIdentity | None = None
    """Null: not bound to a model, only its layers are checked."""
    importance: Importance = Field(default_factory=Importance)
    stages: Annotated[tuple[Stage, ...], Field(strict=False, min_length=1)]
    """At strictly increasing layers."""
    recycling: Recycling | None = None
    """Null: tokens that leave are lost; otherwise needs a stage at layer 0."""
    separators: Separators = "drop"
    """Row separators such as image_newline: kept (as published), or dropped at the first stage."""
    positions: Positions = "original"
    """Positions after layer 0: as in the whole prompt, or consecutive (as published)."""
    budget: Budget | None = None
    provenance: Provenance | None = None

    @model_validator(mode="after")
    def _stages_make_sense(self) -> Self:
        layers = [stage.layer for stage in self.stages]
        if layers != sorted(set(layers)):
            raise ValueError(
                f"stages are at layers {layers} but layers must increase strictly; order them "
                f"and give each layer once"
            )
        if self.recycling is not None and layers[0] != 0:
            raise ValueError(
                f"recycling merges tokens before the language model but the first stage is at "
                f"layer {layers[0]}; add a stage at layer 0 or leave recycling out"
            )
        if self.model is not None and (problem := self._out_of_range(self.model)):
            raise ValueError(f"{problem}; correct the layer or the model")
        return self

    def _out_of_range(self, model: ModelIdentity) -> str | None:
        """What lies beyond the layers of `model`, or None."""
        deepest, depth = self.stages[-1].layer, model.decoder_layers
        if deepest >= depth:
            return (
                f"stages[{len(self.stages) - 1}].layer is {deepest} but the model has "
                f"{depth} decoder layers (0 to {depth - 1})"
            )
        read = self.importance.vision_layer
        if read is not None and read >= model.vision_layers:
            return (
                f"importance.vision_layer is {read} but the model has {model.vision_layers} "
                f"vision layers, counted from 0"
            )
        return None

    def check_fits(self, identity: ModelIdentity) -> None:
        """Refuse a model of another shape than the strategy's.

        Raises:
            StrategyError: a field of the model differs, or a layer lies beyond the model.
        """
        for field in _COMPARED if self.model is not None else ():
            wanted, found = getattr(self.model, field), getattr(identity, field)
            if wanted != found:
                raise StrategyError(
                    f"strategy {self.name!r} is for a model with {field} {wanted!r} but this "
                    f"model has {found!r}; search again for this model"
                )
        if problem := self._out_of_range(identity):
            raise StrategyError(
                f"strategy {self.name!r} does not fit: {problem}; search again for this model"
            )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The strategy in a file.

        Raises:
            StrategyError: the file cannot be read or is not a valid strategy; names the file.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise StrategyError(
                f"{path} cannot be read ({error.strerror}); check the path"
            ) from error
        except UnicodeDecodeError as error:
            raise StrategyError(f"{path} is not UTF-8 text; is it a strategy file?") from error
        return cls.loads(text, str(path))

    @classmethod
    def loads(cls, text: str, source: str = "strategy") -> Self:
        """The strategy in a JSON text; `source` names the text in errors.

        Raises:
            StrategyError: not JSON, another format version, or a wrong field.
        """
        try:
            content = parse_json(text)
        except ValueError as error:
            raise StrategyError(
                f"{source} is not valid JSON ({error}); export the strategy again"
            ) from error
        # Before the fields: a newer version has fields that we would wrongly call unknown.
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise StrategyError(
                f"{source} has format {content.get('format')!r} but this version reads "
                f"{FORMAT!r}; upgrade vflowopt-search or export the strategy again"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise StrategyError(f"{source}: {complaint(error)}") from None

    def content(self) -> dict[str, Any]:
        """What decides what is pruned: all but the name, the claims and the origin."""
        left_out = {"name", "model", "budget", "provenance"}
        return self.model_dump(mode="json", exclude_none=True, exclude=left_out)

    def content_sha256(self) -> str:
        """Fingerprint of the content, shortened: the same strategy under whatever name."""
        return digest(self.content())

    def to_json(self) -> str:
        """The file's text; every float reads back as the same float, nulls are left out."""
        content = self.model_dump(mode="json", exclude_none=True)
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all: a reader never sees half a strategy.

        Raises:
            StrategyError: the folder or the file cannot be written.
        """
        try:
            replace_atomically(Path(path).resolve(), self.to_json())
        except OSError as error:
            raise StrategyError(
                f"{path} cannot be written ({error.strerror}); choose an existing folder that "
                f"can be written to"
            ) from error

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON schema of the file, for editors and other programs."""
        return {"$schema": _SCHEMA_DIALECT, **cls.model_json_schema()}
