"""Prompts, strategies, and importance from eager attention maps, for the two plainest families."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel

from tests.tiny import noise_image, tiny_processor
from vflowopt_search.importance.scores import context_tokens
from vflowopt_search.strategy import Importance, Stage, Strategy

QUESTIONS = ("What color is the cat?", "describe the picture on the left", "how many")
SIZES = {"llava": ((28, 28), (50, 40), (20, 60)), "llava_onevision": ((56, 56), (80, 30), (28, 40))}


def ragged_inputs(family: str, dtype: torch.dtype = torch.float32) -> BatchFeature:
    """Three prompts of different length with noise images of different size, left-padded."""
    generator = torch.Generator().manual_seed(5)
    inputs: BatchFeature = tiny_processor(family)(
        text=[f"USER: <image> {question} ASSISTANT:" for question in QUESTIONS],
        images=[[noise_image(size, generator)] for size in SIZES[family]],
        padding=True,
        return_tensors="pt",
    )
    converted: BatchFeature = inputs.to(dtype)
    return converted


def strategy_of(*stages: tuple[int, float], **changed: Any) -> Strategy:
    """A strategy with these (layer, keep ratio) stages, no recycling unless asked."""
    importance = changed.pop("importance", Importance(vision_layer=2, context_threshold=1.1))
    scores = changed.pop("scores", [None] * len(stages))
    return Strategy(
        name="test",
        importance=importance,
        stages=tuple(
            Stage(layer=layer, keep_ratio=ratio, score=score)
            for (layer, ratio), score in zip(stages, scores, strict=True)
        ),
        **changed,
    )


def eager_importance(
    model: PreTrainedModel, inputs: BatchFeature, importance: Importance
) -> list[Tensor]:
    """Importance of each image's tokens from the attention maps that eager attention returns."""
    assert importance.vision_layer is not None
    base, tower = model.model, model.model.vision_tower
    implementation = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    call = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    maps = base.get_image_features(**call, output_attentions=True).attentions
    tower.set_attn_implementation(implementation)
    return importance_of_map(model, inputs, importance, maps[importance.vision_layer].mean(1))


def projected_map(model: Any, inputs: BatchFeature, vision_layer: int) -> Tensor:
    """The head-mean map from the layer's own projections: eager attention rounds to fp32."""
    attention = model.model.vision_tower.encoder.layers[vision_layer].self_attn
    seen: dict[str, Tensor] = {}
    hooks = [
        getattr(attention, name).register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: out})
        )
        for name in ("q_proj", "k_proj")
    ]
    call = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    model.model.get_image_features(**call)
    for hook in hooks:
        hook.remove()
    shape = (*seen["q_proj"].shape[:2], attention.num_heads, -1)
    query_THQD, key_THQD = (seen[name].view(shape).transpose(1, 2) for name in ("q_proj", "k_proj"))
    logits_THQQ = query_THQD @ key_THQD.transpose(-1, -2) * attention.head_dim**-0.5
    map_TQQ: Tensor = logits_THQQ.softmax(-1).mean(1)
    return map_TQQ


def importance_of_map(
    model: Any, inputs: BatchFeature, importance: Importance, map_TQQ: Tensor
) -> list[Tensor]:
    """Context relevance of each image's tokens, from a head-mean attention map."""
    tower = model.model.vision_tower
    prefix = int(hasattr(tower, "embeddings") and hasattr(tower.embeddings, "class_embedding"))
    received_TP = map_TQQ[:, :, prefix:].mean(1)
    context_TP = context_tokens(received_TP, importance.context_threshold)
    patches_TPP = map_TQQ[:, prefix:, prefix:]
    relevance = [patches_TPP[t][context_TP[t]].mean(0) for t in range(len(context_TP))]
    return _to_tokens(model, inputs, torch.stack(relevance))


def _to_tokens(model: PreTrainedModel, inputs: BatchFeature, map_TP: Tensor) -> list[Tensor]:
    """Tokens of square images: base tile, then the mosaic's rows with a newline (weight 0) each."""
    if model.config.model_type == "llava":
        return list(map_TP)
    tiles = [int((inputs["pixel_values"][i].abs().sum((1, 2, 3)) > 0).sum()) for i in range(3)]
    packed, _ = model.model.pack_image_features(
        [part[..., None] for part in torch.split(map_TP, tiles)],
        inputs["image_sizes"],
        image_newline=map_TP.new_zeros(1),
    )
    return [one[:, 0] for one in packed]
