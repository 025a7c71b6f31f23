"""Relatives of other families: which patches a visual token is made of, seen in the gradient.

With the attention of the vision encoder silenced, a token's features depend on the pixels of its
own patches alone.

Shape suffixes: N = visual tokens of a call, P = patches of a call, S = the encoder's sequence,
T = tiles, D = features of the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import tiny
from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.importance.signals import ImageGeometry

NAMES = (
    "aya_vision",
    "cohere2_vision",
    "cohere_compass",
    "deepseek_vl",
    "gemma4-images",
    "gemma4-video",
    "granite_docling",
    "granite_docling-fine",
    "hyperclovax_vision_v2",
    "janus",
    "lighton_ocr",
    "molmo2",
    "molmo2-video",
    "muse_glimmer",
    "muse_spark",
    "ovis2",
    "qianfan_ocr",
    "vipllava",
)
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@pytest.mark.parametrize("name", NAMES)
def test_a_token_is_made_of_the_patches_that_its_score_is_made_of(name: str) -> None:
    adapter = adapter_for(tiny(name).model())
    for kind, call in calls(name):
        pixels = call[PIXELS[kind]].requires_grad_()
        with silent(adapter):
            encode = getattr(adapter.base, f"get_{kind}_features")
            output = encode(**call)
        features = torch.cat([one.flatten(1) for one in adapter.features(output)])
        geometries = adapter.images(call) if kind == "image" else adapter.videos(call)
        weight_NP = weights(geometries)
        assert len(features) == len(weight_NP)
        for token, weight_P in zip(features, weight_NP, strict=True):
            [grad] = torch.autograd.grad(token.sum(), pixels, retain_graph=True)
            assert torch.equal(touched(adapter, geometries, call, grad), weight_P > 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_sees_patches_in_the_order_that_its_adapter_says(name: str) -> None:
    adapter = adapter_for(tiny(name).model())
    for kind, call in calls(name):
        pixels = call[PIXELS[kind]].requires_grad_()
        sequence = entered(adapter, kind, call)
        geometries = adapter.images(call) if kind == "image" else adapter.videos(call)
        order_S = adapter.patch_order(geometries, call)
        if order_S is not None:
            sequence = sequence[order_S]
        sizes = [adapter.num_prefix_tokens + image.tile_patches for image in geometries]
        tiles = [image.num_tiles for image in geometries]
        assert len(sequence) == sum(n * size for n, size in zip(tiles, sizes, strict=True))
        for place, index in enumerate(patch_rows(geometries, adapter.num_prefix_tokens)):
            [grad] = torch.autograd.grad(sequence[index].sum(), pixels, retain_graph=True)
            found = touched(adapter, geometries, call, grad).nonzero()[:, 0].tolist()
            assert found == [place]


def calls(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The encoding calls that a batch of this variant leads to, with the arguments they take."""
    inputs = tiny(name).inputs(torch.float32)
    image = {k: v for k, v in inputs.items() if not is_text(k) and "video" not in k}
    video = {k: v for k, v in inputs.items() if not is_text(k) and "video" in k}
    if image:
        yield "image", image
    if video:
        yield "video", video


def is_text(key: str) -> bool:
    """Whether an input belongs to the text."""
    return key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def entered(adapter: Adapter, kind: str, call: Mapping[str, Any]) -> Tensor:
    """What the first attention of the vision encoder is given, all calls in a row, (S, D)."""
    seen: list[Tensor] = []

    def see(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    watch = adapter.vision_attentions[0].register_forward_pre_hook(see, with_kwargs=True)
    with silent(adapter):
        getattr(adapter.base, f"get_{kind}_features")(**call)
    watch.remove()
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in seen])


@contextmanager
def silent(adapter: Adapter) -> Iterator[None]:
    """Let the vision encoder's attention say nothing, inside the `with` block."""
    with ExitStack() as stack:
        for attention in adapter.vision_attentions:
            stack.callback(attention.register_forward_hook(_nothing).remove)
        yield


def _nothing(module: Any, args: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return torch.zeros_like(output)
    return (torch.zeros_like(output[0]), *output[1:])


def weights(geometries: tuple[ImageGeometry, ...]) -> Tensor:
    """How much each patch counts in each token's score, (N, P)."""
    blocks = []
    for image in geometries:
        patches = image.num_tiles * image.tile_patches
        maps = torch.eye(patches).view(patches, image.num_tiles, image.tile_patches)
        blocks.append(torch.stack([image.pack(map_TP) for map_TP in maps], dim=1))
    whole_NP = torch.zeros(sum(len(one) for one in blocks), sum(one.shape[1] for one in blocks))
    row, col = 0, 0
    for one in blocks:
        whole_NP[row : row + len(one), col : col + one.shape[1]] = one
        row, col = row + len(one), col + one.shape[1]
    return whole_NP


def patch_rows(geometries: tuple[ImageGeometry, ...], prefix: int) -> list[int]:
    """Where the patches are in a sequence of tiles that begin with `prefix` other tokens."""
    rows: list[int] = []
    first = 0
    for image in geometries:
        for _ in range(image.num_tiles):
            rows += range(first + prefix, first + prefix + image.tile_patches)
            first += prefix + image.tile_patches
    return rows


def touched(
    adapter: Adapter, geometries: tuple[ImageGeometry, ...], call: Mapping[str, Any], grad: Tensor
) -> Tensor:
    """Which patches of the call have a pixel with a gradient, in tile order, (P,)."""
    if grad.dim() == 5:  # tiles of several prompts, some of them padding
        grad = grad[call["pixel_attention_mask"]]
    if grad.dim() == 2:  # patches
        return grad.abs().sum(1) > 0
    if grad.dim() == 3:  # patches of tiles, padded to a common number
        sizes = [image.tile_patches for image in geometries for _ in range(image.num_tiles)]
        by_tile = zip(grad.abs().sum(2) > 0, sizes, strict=True)
        return torch.cat([tile_P[:size] for tile_P, size in by_tile])
    side = adapter.patch_size
    patches = grad.abs().sum(1).unfold(1, side, side).unfold(2, side, side).sum((-1, -2)) > 0
    if "image_sizes" not in call:
        return patches.flatten()
    own = zip(patches, call["image_sizes"].tolist(), strict=True)
    return torch.cat([one[: h // side, : w // side].flatten() for one, (h, w) in own])
