"""Samples to what a model takes: prompt, images, videos and padding by the model's processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vflowopt_search.calibration.prompts import prompt_text
from vflowopt_search.calibration.samples import Sample, Video
from vflowopt_search.errors import CalibrationError, UnsupportedError, first_line

if TYPE_CHECKING:
    import torch
    from transformers import BatchFeature, ProcessorMixin

# what processors raise for pictures that they cannot bring into shape
_REFUSALS = (ValueError, ZeroDivisionError, RuntimeError)


def encode(
    processor: ProcessorMixin, samples: Sequence[Sample], device: str | torch.device = "cpu"
) -> BatchFeature:
    """One batch on `device`, ready for the model's `forward` or `generate`, padded on the left.

    Samples with images, with videos and with neither may stand in one batch.

    Raises:
        CalibrationError: there are no samples, or the processor refuses one, which is named, or
            refuses them in one batch.
        ModelError: the processor places no images, or takes no videos.
    """
    if not samples:
        raise CalibrationError("there are no samples to encode; give at least one")
    if any(sample.videos for sample in samples):
        _require_video(processor)
    try:
        batch = _processed(processor, samples)
    except _REFUSALS as error:
        for sample in samples:
            _require_taken(processor, sample)
        raise CalibrationError(
            f"{type(processor).__name__} takes these {len(samples)} samples one by one but not "
            f"together ({first_line(error)}); make the batch smaller, or give all videos one "
            f"number of frames"
        ) from error
    return batch.to(device)


def _processed(processor: ProcessorMixin, samples: Sequence[Sample]) -> BatchFeature:
    texts = [prompt_text(processor, sample) for sample in samples]
    takes: Any = processor
    begin = getattr(takes.tokenizer, "bos_token", None)
    batch: BatchFeature = takes(
        # an empty list of images would become an empty tensor, which no model takes
        images=[list(sample.images) for sample in samples] if _any_image(samples) else None,
        text=texts,
        padding=True,
        padding_side="left",
        # some chat templates write the first token themselves
        add_special_tokens=not (begin and texts[0].startswith(begin)),
        return_tensors="pt",
        **_video_inputs([video for sample in samples for video in sample.videos]),
    )
    return batch


def _any_image(samples: Sequence[Sample]) -> bool:
    return any(sample.images for sample in samples)


def _video_inputs(videos: Sequence[Video]) -> dict[str, Any]:
    """Frames as they are, for they are chosen already, and when each was seen."""
    if not videos:
        return {}
    metadata = [
        {
            "total_num_frames": max(video.source_frames, video.indices[-1] + 1),
            "fps": video.fps,
            "frames_indices": video.indices,
            "width": video.frames[0].width,
            "height": video.frames[0].height,
        }
        for video in videos
    ]
    return {
        "videos": [list(video.frames) for video in videos],
        "videos_kwargs": {"video_metadata": metadata, "do_sample_frames": False},
    }


def _require_video(processor: ProcessorMixin) -> None:
    # transformers would pass over a video silently
    if getattr(processor, "video_processor", None) is None:
        raise UnsupportedError(
            f"{type(processor).__name__} has no video processor here, and a sample holds a video; "
            f"install torchvision and give a whole checkpoint of a model that takes videos, or "
            f"leave videos out"
        )


def _require_taken(processor: ProcessorMixin, sample: Sample) -> None:
    """Raise CalibrationError if the processor refuses this very sample."""
    try:
        _processed(processor, [sample])
    except _REFUSALS as error:
        pictures = [*sample.images, *(video.frames[0] for video in sample.videos)]
        sizes = ", ".join(f"{one.width} x {one.height}" for one in pictures) or "none"
        raise CalibrationError(
            f"{type(processor).__name__} refuses sample {sample.id}, whose pictures have the sizes "
            f"{sizes} ({first_line(error)}); leave it out, or crop or resize them"
        ) from error
