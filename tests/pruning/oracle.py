"""An independent reference: instead of removing tokens, forbid everybody to look at them.

Shape suffixes: B = rows, S = sequence with generated tokens, L = decoder layers, D = features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel

from tests.tiny import tiny_processor
from vflowopt_search.importance.scores import context_tokens
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.strategy import Importance, Stage, Strategy

NEW_TOKENS = 9
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


def noise_image(size: tuple[int, int], generator: torch.Generator) -> Image.Image:
    """Coarse random blocks, so that patches differ in entropy and content."""
    coarse = torch.randint(0, 256, (1, 3, 6, 6), generator=generator).float()
    fine = torch.nn.functional.interpolate(coarse, size=(size[1], size[0]), mode="bilinear")
    noise = torch.randn(fine.shape, generator=generator) * torch.linspace(0, 40, size[0])
    pixels = (fine + noise).clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.numpy())


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


@dataclass(frozen=True)
class Steps:
    """Nine greedy steps: the ids (B, new) and the logits of each, in the model's dtype."""

    ids: Tensor
    logits: Tensor


def generate(model: Any, inputs: BatchFeature, **options: Any) -> Steps:
    """Prefill and eight decode steps; logits are taken at the head (`generate` rounds to fp32)."""
    seen: list[Tensor] = []
    hook = model.lm_head.register_forward_hook(lambda m, a, out: seen.append(out[:, -1].clone()))
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    try:
        sequences = model.generate(**inputs, **length, do_sample=False, **options)
    finally:
        hook.remove()
    return Steps(sequences[:, inputs["input_ids"].shape[1] :], torch.stack(seen, dim=1))


def masked_logits(
    model: PreTrainedModel,
    inputs: BatchFeature,
    ids: Tensor,
    last: LastPrefill,
    strategy: Strategy,
) -> Tensor:
    """The same steps by an unpruned model in which the same tokens are masked, (B, new, V)."""
    base: Any = model.model
    valid_BS = inputs["attention_mask"].bool()
    embeds_BSD = _prompt_embeds(model, inputs)
    _write_recycled(model, inputs, embeds_BSD, last, strategy)
    new_BSD = base.get_input_embeddings()(ids[:, :-1])
    embeds_BSD = torch.cat([embeds_BSD, new_BSD], dim=1)
    grown_BS = torch.nn.functional.pad(valid_BS, (0, new_BSD.shape[1]), value=True)
    layers = base.language_model.layers
    alive_LBS = _alive(grown_BS, inputs, last, model.config.image_token_id, len(layers))
    position_ids = (grown_BS.long().cumsum(1) - 1).clamp(min=0)
    if strategy.positions == "packed":
        packed = (alive_LBS[strategy.stages[0].layer].long().cumsum(1) - 1).clamp(min=0)
        position_ids = packed
    hidden_BSD = embeds_BSD
    rotary = base.language_model.rotary_emb(hidden_BSD, position_ids)
    for layer, alive_BS in zip(layers, alive_LBS, strict=True):
        hidden_BSD = layer(
            hidden_BSD,
            attention_mask=_additive_mask(alive_BS, hidden_BSD.dtype),
            position_embeddings=rotary,
            position_ids=position_ids,
            past_key_values=None,
            use_cache=False,
        )
    hidden_BSD = base.language_model.norm(hidden_BSD)
    logits: Tensor = model.lm_head(hidden_BSD[:, -NEW_TOKENS:])
    return logits


def _prompt_embeds(model: Any, inputs: BatchFeature) -> Tensor:
    base = model.model
    embeds_BSD = base.get_input_embeddings()(inputs["input_ids"])
    call = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    features = torch.cat(list(base.get_image_features(**call).pooler_output))
    visual = (inputs["input_ids"] == model.config.image_token_id)[..., None].expand_as(embeds_BSD)
    scattered: Tensor = embeds_BSD.masked_scatter(visual, features.to(embeds_BSD.dtype))
    return scattered


def _write_recycled(
    model: PreTrainedModel,
    inputs: BatchFeature,
    embeds_BSD: Tensor,
    last: LastPrefill,
    strategy: Strategy,
) -> None:
    if strategy.recycling is None:
        return
    map_TQQ = projected_map(model, inputs, strategy.importance.vision_layer or 0)
    weights = importance_of_map(model, inputs, strategy.importance, map_TQQ)
    for row, recycled in enumerate(last.recycled):
        visual = (inputs["input_ids"][row] == model.config.image_token_id).nonzero()[:, 0].tolist()
        weight = dict(zip(visual, weights[row].tolist(), strict=True))
        means = {
            anchor: sum(weight[p] * embeds_BSD[row, p] for p in members)
            / sum(weight[p] for p in members)
            for anchor, members in recycled.items()
        }
        for anchor, mean in means.items():
            embeds_BSD[row, anchor] = mean


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


def _alive(
    grown_BS: Tensor, inputs: BatchFeature, last: LastPrefill, image_token: int, num_layers: int
) -> list[Tensor]:
    """Which tokens may be looked at, per decoder layer."""
    alive_BS, per_layer = grown_BS.clone(), []
    visual_BS = torch.nn.functional.pad(
        inputs["input_ids"] == image_token, (0, grown_BS.shape[1] - inputs["input_ids"].shape[1])
    )
    for layer in range(num_layers):
        if layer in last.kept:
            alive_BS = alive_BS & ~visual_BS
            for row, kept in enumerate(last.kept[layer]):
                alive_BS[row, kept] = True
        per_layer.append(alive_BS)
    return per_layer


def _additive_mask(alive_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """Causal, on living keys only; a row with nothing to look at looks at itself."""
    size = alive_BS.shape[1]
    allowed_BSS = torch.ones(size, size, dtype=torch.bool).tril()[None] & alive_BS[:, None]
    allowed_BSS = allowed_BSS | torch.eye(size, dtype=torch.bool)[None]
    return torch.zeros(allowed_BSS.shape, dtype=dtype).masked_fill(
        ~allowed_BSS, torch.finfo(dtype).min
    )[:, None]
