"""Models and processors from a folder or a hub name, or a model from a configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from vflowopt_search.adapters.hub import Source, find_checkpoint
from vflowopt_search.adapters.loading_errors import named
from vflowopt_search.adapters.processors import (
    NAMING_FILES,
    processor_class_of,
    share_processor,
    without_video,
)
from vflowopt_search.errors import ModelError
from vflowopt_search.memory_errors import fitting
from vflowopt_search.strategy import PixelScale

# transformers annotates its automatic classes in part only
_AutoModel: Any = AutoModelForImageTextToText
_AutoProcessor: Any = AutoProcessor


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """An image-text model in eval mode on `device`; `dtype` "auto" is what the checkpoint holds.

    Raises `ModelError` when there is no such checkpoint, when it is of another kind, when its
    weights are damaged or incomplete, and when they do not fit in the device's memory.
    """
    place, precision = parse_device(device), _parse_dtype(dtype)
    source = find_checkpoint(name_or_path)
    options = _options(source, trust_remote_code)
    with named(source):
        config = AutoConfig.from_pretrained(source.name, **options)
    _require_image_text(config, source.name)
    with fitting(_too_large(source.name, place)):
        with named(source):
            model, report = _AutoModel.from_pretrained(
                source.name, config=config, dtype=precision, output_loading_info=True, **options
            )
        _require_all_weights(sorted(report["missing_keys"]), source.name)
        return _ready(model, place)


def load_processor(name_or_path: str | Path, *, trust_remote_code: bool = False) -> ProcessorMixin:
    """The checkpoint's processor, padding on the left; for images only where torchvision is absent.

    Raises `ModelError` when there is none, or when it cannot be built on this machine.
    """
    source = find_checkpoint(name_or_path)
    options = _options(source, trust_remote_code)
    processor = _whole_processor(source, options)
    processor.tokenizer.padding_side = "left"  # prompts of a batch end together
    return processor


def random_init(
    config_json: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    seed: int = 0,
) -> PreTrainedModel:
    """A model of random weights from a configuration file, or from a folder that holds one.

    For speed and memory at full size where the weights cannot be had. "auto" is the
    configuration's own type. Raises `ModelError` when the file is no image-text configuration, and
    when the model does not fit in the device's memory.
    """
    place, precision = parse_device(device), _parse_dtype(dtype)
    config, path = _config_of(config_json), str(config_json)
    if precision == "auto":
        precision = config.dtype or torch.float32
    with fitting(_too_large(path, place)):
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), place:
            torch.manual_seed(seed)
            model = _AutoModel.from_config(config, dtype=precision)
        return _ready(model, place)


def require_kin(
    config_json: str | Path,
    name_or_path: str | Path,
    *,
    called: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Refuse a checkpoint, which may be `called` otherwise, with a processor for other models.

    Raises `ModelError` also when one of them cannot be read.
    """
    ours, source = _config_of(config_json).model_type, find_checkpoint(name_or_path)
    with named(source):
        options = _options(source, trust_remote_code)
        theirs = AutoConfig.from_pretrained(source.name, **options).model_type
    if not share_processor(ours, theirs):
        raise ModelError(
            f"{config_json} is of type {ours}, but {called or name_or_path} is of type {theirs}, "
            f"whose processor makes other inputs; name a checkpoint of type {ours}"
        )


def require_processor_beside(config_json: str | Path) -> None:
    """Raise `ModelError` where the folder of a configuration names no processor."""
    path = Path(config_json).expanduser()
    folder = path if path.is_dir() else path.parent
    if not any((folder / file).is_file() for file in NAMING_FILES):
        raise ModelError(
            f"there is no processor beside {config_json}; name as MODEL a checkpoint of type "
            f"{_config_of(path).model_type}, whose processor is then used"
        )


def pixel_scale(processor: ProcessorMixin) -> PixelScale | None:
    """How the processor normalised pixels, or None when its image processor does not say."""
    image = getattr(processor, "image_processor", None)
    if image is None:
        return None
    factor = (getattr(image, "rescale_factor", None) or 1 / 255) * 255
    if not getattr(image, "do_rescale", True):
        factor = 255.0
    if not getattr(image, "do_normalize", True):
        return PixelScale(mean=(0.0, 0.0, 0.0), std=(1 / factor,) * 3)
    mean, std = getattr(image, "image_mean", None), getattr(image, "image_std", None)
    if mean is None or std is None:
        return None
    # (pixel * rescale - mean) / std, written with pixel / 255
    return PixelScale(
        mean=tuple(value / factor for value in _per_channel(mean)),
        std=tuple(value / factor for value in _per_channel(std)),
    )


def _config_of(config_json: str | Path) -> PreTrainedConfig:
    """An image-text configuration, from its file or its folder."""
    path = Path(config_json).expanduser()
    if not path.exists():
        raise ModelError(f"{path} does not exist; give a model's config.json or its folder")
    with named(Source(str(path), local_only=True, is_folder=path.is_dir())):
        config: PreTrainedConfig = AutoConfig.from_pretrained(str(path))
    _require_image_text(config, str(path))
    return config


def _whole_processor(source: Source, options: dict[str, Any]) -> ProcessorMixin:
    """What `AutoProcessor` gives if it is a processor, else one put together for images only."""
    refusal: ModelError | None = None
    try:
        with named(source):
            processor = _AutoProcessor.from_pretrained(source.name, **options)
        if isinstance(processor, ProcessorMixin):  # without torchvision, maybe a tokenizer only
            return processor
    except ModelError as error:  # its video processor cannot be built, or was never saved
        refusal = error
    with named(source):
        whole = processor_class_of(source.name, options)
    if whole is None:
        raise refusal or ModelError(
            f"{source.name} names no processor that transformers knows; give the folder of an "
            f"image-text model"
        )
    for_images = without_video(whole)
    with named(source):
        return for_images.from_pretrained(source.name, **options)


def _ready(model: PreTrainedModel, place: torch.device) -> PreTrainedModel:
    movable: torch.nn.Module = model  # PreTrainedModel.to is annotated wrongly
    movable.to(place).eval()
    return model


def _per_channel(value: float | Sequence[float]) -> tuple[float, ...]:
    if isinstance(value, int | float):
        return (float(value),) * 3
    return tuple(float(entry) for entry in value)


def _options(source: Source, trust_remote_code: bool) -> dict[str, Any]:
    return {"local_files_only": source.local_only, "trust_remote_code": trust_remote_code}


def _too_large(name: str, place: torch.device) -> str:
    return (
        f"{name} does not fit in the memory of {place}; load it in bfloat16, or on a device "
        f"with more memory that is free"
    )


def _require_image_text(config: PreTrainedConfig, name: str) -> None:
    by_remote_code = "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not by_remote_code:
        raise ModelError(
            f"{name} is of type {config.model_type}, which is not an image-text model; "
            f"give one that takes images and writes text"
        )


def _require_all_weights(missing: Sequence[str], name: str) -> None:
    if missing:
        raise ModelError(
            f"{name} lacks {len(missing)} weights (such as {missing[0]}), which would stay "
            f"random; fetch the whole checkpoint"
        )


def parse_device(device: str | torch.device) -> torch.device:
    """A device that is there: ModelError for a name torch does not know, or hardware not here."""
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"{device!r} is no torch device; use cpu, cuda or cuda:1") from error
    if place.type not in ("cpu", "cuda"):
        raise ModelError(f"device {device} is not supported; use cpu, cuda or cuda:1")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        seen = f"{found} GPUs; use one of them, or cpu" if found else "no GPU; use cpu"
        raise ModelError(f"device {device} was asked for but torch sees {seen}")
    return place


def _parse_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """A floating-point type by name, or "auto"."""
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype == "auto" or (isinstance(kind, torch.dtype) and kind.is_floating_point):
        return "auto" if dtype == "auto" or kind is None else kind
    raise ModelError(f"{dtype!r} is no precision; use auto, float32, bfloat16 or float16")
