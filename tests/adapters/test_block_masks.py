"""Tokens of one image, or of PaliGemma's prefix, see each other: as transformers masks them.

Shape suffixes: B = prompts, S = their tokens, K = those of them that are left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, BatchFeature, DynamicCache, StaticCache

from tests.families import tiny
from tests.families.paligemma import second_config
from tests.tiny import randomise
from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.blocks import same_block
from vflowopt_search.adapters.registry import adapter_for

_AutoModel: Any = AutoModelForImageTextToText
CACHES: dict[str, Callable[[Any], Any]] = {
    "none": lambda config: None,
    "dynamic": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=120),
}


def second_paligemma(window: int) -> Any:
    """PaliGemma 2, which runs with eager attention alone."""
    model = _AutoModel.from_config(second_config(window), attn_implementation="eager")
    randomise(model, seed=0)
    return model.train(False)


def case(name: str, attn: str) -> tuple[Adapter, BatchFeature]:
    """A model with the prompts of its family."""
    if name.startswith("paligemma2"):
        window = 24 if name.endswith("window") else 512
        return adapter_for(second_paligemma(window)), tiny("paligemma").inputs(torch.float32)
    return adapter_for(tiny(name).model(attn=attn)), tiny(name).inputs(torch.float32)


def given_masks(adapter: Adapter, inputs: BatchFeature, cache: Any) -> list[Any]:
    """What transformers gives each decoder layer for a prompt."""
    seen: list[Any] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
        )
        for layer in adapter.decoder_layers
    ]
    model: Any = adapter.model
    with torch.no_grad():
        model(**inputs, past_key_values=cache, use_cache=cache is not None)
    for hook in hooks:
        hook.remove()
    return seen


def our_mask(
    adapter: Adapter, layer: int, blocks_BK: Tensor | None, valid_BK: Tensor, cache: Any = None
) -> Any:
    """What the adapter gives a decoder layer that holds these tokens."""
    config = adapter.backbone.config
    kinds = getattr(config, "layer_types", None)
    return adapter.layer_mask(
        kinds[layer] if kinds else "full_attention",
        blocks_BK,
        config=config,
        inputs_embeds=torch.zeros(*valid_BK.shape, 4),
        attention_mask=valid_BK,
        past_key_values=cache,
        position_ids=None,
        layer_idx=layer,
    )


def allowed(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask == 0


CASES = [
    (name, attn, cache)
    for name in ("gemma3", "gemma3-images", "gemma3-window", "paligemma")
    for attn in ("sdpa", "eager")
    for cache in CACHES
] + [(name, "eager", "dynamic") for name in ("paligemma2", "paligemma2-window")]


@pytest.mark.parametrize(("name", "attn", "cache"), CASES)
def test_masks_of_a_whole_prompt_are_those_of_transformers(
    name: str, attn: str, cache: str
) -> None:
    adapter, inputs = case(name, attn)
    config = adapter.backbone.config
    expected = given_masks(adapter, inputs, CACHES[cache](config))
    valid_BS, fresh = inputs["attention_mask"], CACHES[cache](config)
    blocks_BS = adapter.blocks(dict(inputs))
    assert blocks_BS is not None
    for layer, mask in enumerate(expected):
        ours = allowed(our_mask(adapter, layer, blocks_BS, valid_BS, fresh))
        real_BS = valid_BS.bool()  # what padding asks is nobody's business
        assert torch.equal(ours[:, 0][real_BS], allowed(mask)[:, 0][real_BS]), layer


@pytest.mark.parametrize("name", ["gemma3-images", "gemma3-window", "paligemma"])
def test_masks_of_what_is_left_hold_for_the_tokens_that_are_left(name: str) -> None:
    """Written out by hand: a window counts the tokens left, a block stays one with gaps in it."""
    adapter, inputs = case(name, "sdpa")
    blocks_BS, ids_BS = adapter.blocks(dict(inputs)), inputs["input_ids"]
    assert blocks_BS is not None
    place_S = torch.arange(ids_BS.shape[1])
    kept_S = (place_S % 3 != 1) | (ids_BS != adapter.image_token_id).any(0)
    valid_BK, blocks_BK = inputs["attention_mask"][:, kept_S], blocks_BS[:, kept_S]
    step_K = torch.arange(valid_BK.shape[1])
    distance_KK = step_K[:, None] - step_K
    together_BKK = (blocks_BK[:, :, None] == blocks_BK[:, None]) & (blocks_BK[:, None] >= 0)
    sees_BKK = ((distance_KK >= 0) | together_BKK) & valid_BK[:, None].bool()
    kinds = getattr(adapter.backbone.config, "layer_types", ["full_attention"])
    for layer, kind in enumerate(kinds):
        expected_BKK = sees_BKK
        if kind == "sliding_attention":
            expected_BKK = sees_BKK & (distance_KK < adapter.backbone.config.sliding_window)
        ours_BKK = our_mask(adapter, layer, blocks_BK, valid_BK)[:, 0]
        assert torch.equal(ours_BKK, expected_BKK.expand_as(ours_BKK)), kind


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_without_token_types_nothing_is_changed(name: str) -> None:
    adapter, inputs = case(name, "sdpa")
    assert adapter.blocks({"input_ids": inputs["input_ids"]}) is None
    valid_BS = inputs["attention_mask"]
    ours = our_mask(adapter, 2, None, valid_BS)
    causal_SS = torch.ones(valid_BS.shape[1], valid_BS.shape[1]).tril().bool()
    assert torch.equal(ours[:, 0], causal_SS & valid_BS[:, None].bool())


def test_each_image_of_gemma3_is_a_block_of_its_own() -> None:
    adapter, _ = case("gemma3", "sdpa")
    blocks_BS = adapter.blocks({"token_type_ids": torch.tensor([[0, 1, 1, 0, 1, 0], [1] * 6])})
    assert blocks_BS is not None
    assert blocks_BS.tolist() == [[-1, 0, 0, -1, 1, -1], [0] * 6]


def test_the_suffix_of_paligemma_is_causal() -> None:
    adapter, _ = case("paligemma", "sdpa")
    blocks_BS = adapter.blocks({"token_type_ids": torch.tensor([[0, 0, 1, 1]])})
    assert blocks_BS is not None
    assert blocks_BS.tolist() == [[0, 0, -1, -1]]
    mask = our_mask(adapter, 0, blocks_BS, torch.ones(1, 4, dtype=torch.long))
    assert mask[0, 0].long().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1] * 4]


def test_places_that_a_static_cache_has_to_spare_are_in_no_block() -> None:
    see = same_block(torch.tensor([[-1, 0, 0, 1]]))
    place = torch.arange(6)
    seen = see(0, 0, place[:4, None], place[None]).nonzero().tolist()
    assert seen == [[1, 1], [1, 2], [2, 1], [2, 2], [3, 3]]
