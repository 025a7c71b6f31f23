"""Processors on machines without torchvision, where a checkpoint's own one refuses to be built.

transformers loads image processors from PIL where torchvision is absent, but its video processors
need torchvision, and a processor with a video slot refuses to be built without one. For images the
slot is not needed: `without_video` derives a class from the checkpoint's own that leaves it out.
"""

from __future__ import annotations

import json
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import transformers
from transformers import PROCESSOR_MAPPING, AutoConfig, ProcessorMixin
from transformers.models.auto import image_processing_auto, processing_auto
from transformers.utils.hub import cached_file

from vflowopt_search.errors import UnsupportedError

NAMING_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


class _WithoutVideo(ProcessorMixin):
    """Stands between a processor class and `ProcessorMixin`, and takes the video slot away."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in cls._all_attributes() if "video" not in name]

    @classmethod
    def _all_attributes(cls) -> list[str]:
        mixin: Any = super()
        return list(mixin.get_attributes())

    def __init__(self, *parts: Any, **options: Any) -> None:
        mixin: Any = super()
        named = dict(zip(self._all_attributes(), parts, strict=False)) | options
        mixin.__init__(**{name: part for name, part in named.items() if "video" not in name})

    @classmethod
    def _get_arguments_from_pretrained(cls, *args: Any, **kwargs: Any) -> list[Any]:
        mixin: Any = super()
        parts = mixin._get_arguments_from_pretrained(*args, **kwargs)
        loaded = dict(zip(cls.get_attributes(), parts, strict=True))
        return [loaded.get(name) for name in cls._all_attributes()]


def without_video(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """`processor_class` for images and text only; everything else its `__init__` sets is kept.

    Its instances raise UnsupportedError when they are given a video.
    """
    own_call: Any = processor_class.__call__

    @wraps(own_call)
    def refuse_video(self: ProcessorMixin, *args: Any, **kwargs: Any) -> Any:
        # transformers would pass over a video silently; it is the third of its arguments
        if kwargs.get("videos", args[2] if len(args) > 2 else None) is not None:
            raise UnsupportedError(
                f"{type(self).__name__} was built without its video processor and takes images "
                f"only; install torchvision, and give it a whole checkpoint, for video"
            )
        return own_call(self, *args, **kwargs)

    body: dict[str, Any] = {"__module__": processor_class.__module__, "__call__": refuse_video}
    if "apply_chat_template" in vars(processor_class):
        # SmolVLM's own one reads how videos are sampled, also where there is none
        body["video_processor"] = SimpleNamespace(num_frames=None, fps=None)
    return type(processor_class.__name__, (processor_class, _WithoutVideo), body)


def share_processor(model_type: str, other: str) -> bool:
    """Whether both types take one kind of processor, or of image processor, as far as is known."""
    whole, image = cast(Any, processing_auto), cast(Any, image_processing_auto)
    mappings = whole.PROCESSOR_MAPPING_NAMES, image.IMAGE_PROCESSOR_MAPPING_NAMES
    kinds = [(mapping.get(model_type), mapping.get(other)) for mapping in mappings]
    return any(one == another or None in (one, another) for one, another in kinds)


def processor_class_of(name: str, options: dict[str, Any]) -> type[ProcessorMixin] | None:
    """The class that the files of checkpoint `name` say, else the one of its model type.

    `options` go to transformers (`local_files_only`, `trust_remote_code`). None when the checkpoint
    names no processor that transformers knows.
    """
    for file in NAMING_FILES:
        found = cached_file(
            name,
            file,
            local_files_only=options["local_files_only"],
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        title = json.loads(Path(found).read_text("utf-8")).get("processor_class") if found else None
        named = getattr(transformers, title, None) if title else None
        if isinstance(named, type) and issubclass(named, ProcessorMixin):
            return named
    config = AutoConfig.from_pretrained(name, **options)
    mapping: Any = PROCESSOR_MAPPING  # annotated as if it held pairs
    mapped: type[ProcessorMixin] | None = mapping.get(type(config), None)
    return mapped
