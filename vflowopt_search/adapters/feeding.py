"""How a vision encoder is called, and how features that it gave before reach the model.

The newest transformers takes them as `mm_encoder_outputs`, and adapters speak of features in that
version's form. Older versions (5.17) know pixels only: there the encoder's methods of this one
model hand out what was encoded before, in the form that the older version's forward wants. All
that differs between the two is told here, so that it can go in one piece.

Shape suffixes: N = visual tokens of one image, D = features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.pruning.vision import KINDS, wrapped

ENCODED = "mm_encoder_outputs"
PIXELS = "pixel_values"
VIDEO_PIXELS = "pixel_values_videos"
STRATEGY = "vision_feature_select_strategy"


def takes_encoded(adapter: Adapter) -> bool:
    """Whether the model's forward takes features that were encoded before."""
    return ENCODED in inspect.signature(adapter.base.forward).parameters


def encoder_inputs(adapter: Adapter, inputs: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What of a processor's output the encoder of one kind takes; empty without pixels."""
    encoder = getattr(adapter.base, KINDS[kind], None)
    if encoder is None:
        return {}
    wanted = inspect.signature(encoder).parameters
    taken = {name: inputs[name] for name in wanted if name != "kwargs" and name in inputs}
    if kind == "video" and VIDEO_PIXELS not in wanted:  # 5.17 names them as those of an image
        taken.pop(PIXELS, None)
        taken |= {PIXELS: inputs[VIDEO_PIXELS]} if VIDEO_PIXELS in inputs else {}
    if kind == "image" and adapter.model_type == "llava" and "image_sizes" in inputs:
        taken["image_sizes"] = inputs["image_sizes"]  # which 5.17 takes, but does not name
    if not any(name.startswith(PIXELS) for name in taken):
        return {}
    strategy = wanted.get(STRATEGY)
    if strategy is not None and strategy.default is inspect.Parameter.empty:
        taken.setdefault(STRATEGY, None)  # 5.17's llama4 wants one, and has no use for it
    return taken


def encode_visuals(adapter: Adapter, call: Mapping[str, Any], kind: str) -> Any:
    """What the encoder of one kind gives for `call`, in the newest version's form."""
    output = getattr(adapter.base, KINDS[kind])(**call, return_dict=True)
    if takes_encoded(adapter):
        return output
    newest = copy(output)
    restore = _NEWEST.get((adapter.model_type, kind))
    if restore is not None:
        newest.pooler_output = restore(adapter, output.pooler_output)
    deepstack = getattr(output, "deepstack_features", None)
    if deepstack is not None:
        sizes = [len(one) for one in output.pooler_output]
        newest.deepstack_features = [torch.split(layer, sizes) for layer in deepstack]
    return newest


@contextmanager
def feeding(adapter: Adapter, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The inputs as the model takes them in calls inside the `with` block.

    A pruning engine must be attached before: then its recorder sees no encoding, and the signals
    it was provided with stay.

    Args:
        adapter: the model.
        inputs: with the newest version's `mm_encoder_outputs`, or without any visuals.
    """
    call = dict(inputs)
    with ExitStack() as stack:
        if ENCODED in call and not takes_encoded(adapter):
            pixels = torch.zeros(1, device=adapter.backbone.device, dtype=adapter.backbone.dtype)
            for kind, output in call.pop(ENCODED).items():
                hand_out = _HandOut(_oldest(adapter, output, kind))
                stack.enter_context(wrapped(adapter.base, KINDS[kind], hand_out))
                # nobody reads them: they lead the model's forward to the encoder's method
                call |= dict.fromkeys(_pixel_names(adapter, kind), pixels)
        yield call


class _HandOut:
    """In place of an encoding: what was encoded before."""

    def __init__(self, output: Any) -> None:
        self.output = output

    def __call__(self, encode: Callable[..., Any], call: Mapping[str, Any]) -> Any:
        return self.output


def _pixel_names(adapter: Adapter, kind: str) -> list[str]:
    """The arguments of the model's forward that hold pixels of one kind."""
    names = [n for n in inspect.signature(adapter.base.forward).parameters if PIXELS in n]
    return [name for name in names if (name == VIDEO_PIXELS) == (kind == "video")]


def _oldest(adapter: Adapter, output: Any, kind: str) -> Any:
    """Features as the older version's forward wants them."""
    oldest = copy(output)
    turn = _OLDEST.get((adapter.model_type, kind))
    if turn is not None:
        oldest.pooler_output = turn(output.pooler_output)
    deepstack = getattr(output, "deepstack_features", None)
    if deepstack is not None:
        oldest.deepstack_features = [torch.cat(list(layer)) for layer in deepstack]
    return oldest


def _with_newline(adapter: Adapter, videos_VND: Tensor) -> Tensor:
    """The newline that the older forward puts behind every video."""
    newline_VND = adapter.base.image_newline.expand(len(videos_VND), 1, -1)
    return torch.cat([videos_VND, newline_VND.to(videos_VND)], dim=1)


def _without_newline(videos_VND: Tensor) -> Tensor:
    return videos_VND[:, :-1]


def _frames_joined(adapter: Adapter, videos: Sequence[Tensor]) -> list[Tensor]:
    """Videos of (frames, tokens, D) as (N, D)."""
    return [video.flatten(0, 1) for video in videos]


def _frames_apart(videos: Sequence[Tensor]) -> list[Tensor]:
    """The older forward flattens two dimensions, whatever they are."""
    return [video_ND[None] for video_ND in videos]


def _stacked(tiles: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tiles))


def _in_one_row(images: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(images))[None]


# what the older version's encoder gives, in the newest form
_NEWEST: Mapping[tuple[str, str], Callable[[Adapter, Any], Any]] = {
    ("llava_onevision", "video"): _with_newline,
    ("llava_next_video", "video"): _frames_joined,
}
# the newest form, as the older version's forward wants it
_OLDEST: Mapping[tuple[str, str], Callable[[Any], Any]] = {
    ("llava_onevision", "video"): _without_newline,
    ("llava_next_video", "video"): _frames_apart,
    ("idefics3", "image"): _stacked,
    ("smolvlm", "image"): _stacked,
    ("hunyuan_vl", "image"): _in_one_row,
}
