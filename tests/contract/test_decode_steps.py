"""A decode step after pruning: no mask and no hook where there is nothing to hide, and still right.

Shape suffixes: B = rows, T = new tokens, V = vocabulary.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BatchFeature, DynamicCache

from tests.contract.models import inputs_of, model_of
from tests.contract.oracle import NEW_TOKENS, generate, masked_logits
from tests.contract.test_decoding import first_row, last_of, strategy
from tests.contract.test_removal import FP32, gap
from tests.families import TinyFamily, tiny
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.deploy import attached_engine, pruned
from vflowopt_search.pruning import masks
from vflowopt_search.pruning.masks import LayerMasks

# one image in the first row, one set of pixels per image; every way in which masks are made
PLAIN = (
    *("gemma3", "gemma3-window", "gemma4", "glm4v", "idefics3", "internvl", "llama4-chunks"),
    *("llava", "llava_onevision", "mistral3", "paligemma", "qwen2_5_vl", "qwen2_vl", "qwen3_vl"),
)


def alike(name: str) -> BatchFeature:
    """A batch of two rows that are the same prompt, so that neither has padding."""
    row = first_row(name)
    return BatchFeature({key: torch.cat([value, value]) for key, value in row.items()})


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_prompt_by_itself_needs_no_mask(name: str, attn: str) -> None:
    model, inputs = model_of(name, attn), first_row(name)
    with pruned(model, strategy(name)) as applied:
        steps = generate(model, inputs)
        last = last_of(applied)
    expected = masked_logits(tiny(name), model, inputs, steps.ids, last, strategy(name))
    torch.testing.assert_close(steps.logits, expected, rtol=0, atol=FP32)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava_onevision", "gemma3", "mistral3"])
def test_nor_does_a_batch_of_equal_rows(name: str, attn: str) -> None:
    model, inputs = model_of(name, attn), alike(name)
    with pruned(model, strategy(name)) as applied:
        steps = generate(model, inputs)
        last = last_of(applied)
    expected = masked_logits(tiny(name), model, inputs, steps.ids, last, strategy(name))
    torch.testing.assert_close(steps.logits, expected, rtol=0, atol=FP32)


def hooks_of_steps(model: Any, inputs: BatchFeature, name: str) -> list[int]:
    """Hooks on the decoder layers as the head of each forward runs."""
    layers, seen = adapter_for(model).decoder_layers, []
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(
        lambda module, args: seen.append(sum(len(one._forward_pre_hooks) for one in layers))
    )
    with attached_engine(model, strategy(name)):
        generate(model, inputs)
    hook.remove()
    return seen


def test_layers_have_hooks_only_while_these_have_something_to_do() -> None:
    name = "llava_onevision"
    model = model_of(name)
    later = len(adapter_for(model).decoder_layers) - 3  # from the stage at layer 3 on
    assert hooks_of_steps(model, first_row(name), name) == [later] + [0] * (NEW_TOKENS - 1)
    assert hooks_of_steps(model, inputs_of(name), name) == [later] * NEW_TOKENS


@pytest.mark.parametrize("name", ["llava_onevision", "mistral3"])
def test_an_answer_may_outgrow_the_room_of_its_masks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "ROOM", 2)
    model, inputs = model_of(name, "eager"), inputs_of(name)
    with pruned(model, strategy(name)) as applied:
        steps = generate(model, inputs)
        last = last_of(applied)
    expected = masked_logits(tiny(name), model, inputs, steps.ids, last, strategy(name))
    torch.testing.assert_close(steps.logits, expected, rtol=0, atol=FP32)


def test_seeing_padding_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "llava_onevision"
    monkeypatch.setattr(LayerMasks, "hide_nothing", lambda self, state, num_new: True)
    assert gap(name, strategy(name), "sdpa", torch.float32) > 0.1


def said_by(
    model: Any, inputs: BatchFeature, turns_BT: list[Tensor], padding: int = 0, **given: Any
) -> list[Tensor]:
    """Last logits after a prompt and after each of some turns; -1 becomes a `padding` token."""
    mask_BS = inputs["attention_mask"]
    with torch.inference_mode():
        found = model(**inputs, use_cache=True, logits_to_keep=1, **given)
        logits = [found.logits[:, -1]]
        for turn_BT in turns_BT:
            mask_BS = torch.cat([mask_BS, (turn_BT >= 0).long()], dim=1)
            found = model(
                input_ids=torch.where(turn_BT < 0, padding, turn_BT),
                attention_mask=mask_BS,
                past_key_values=found.past_key_values,
            )
            logits.append(found.logits[:, -1])
    return logits


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_padding_of_a_later_turn_stays_hidden(attn: str) -> None:
    name = "llava_onevision"
    steps = [torch.full((2, 1), 9)] * 4
    turns = [*steps, torch.tensor([[9, 10, 11], [-1, 10, 11]]), *steps]
    model = model_of(name, attn)
    with pruned(model, strategy(name)):
        said = [said_by(model, alike(name), turns, padding) for padding in (3, 7)]
    torch.testing.assert_close(said[0], said[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["gemma3-window", "llava", "llama4-chunks", "qwen2_5_vl"])
def test_a_cache_made_without_the_model(name: str) -> None:
    model, inputs = model_of(name), first_row(name)
    steps = [torch.full((1, 1), 9)] * 12
    config = adapter_for(model).backbone.config
    with pruned(model, strategy(name)):
        said = [
            said_by(model, inputs, steps, past_key_values=cache)
            for cache in (DynamicCache(config=config), DynamicCache())
        ]
    torch.testing.assert_close(said[0], said[1], rtol=0, atol=FP32)


def narrow(family: TinyFamily, window: int) -> Any:
    """The family's model with a window of so many tokens."""
    model: Any = family.model()
    model.config.text_config.sliding_window = window
    adapter_for(model).backbone.config.sliding_window = window
    for layer in adapter_for(model).decoder_layers:
        attention: Any = layer.self_attn
        if getattr(attention, "sliding_window", None) is not None:
            attention.sliding_window = window
    return model


def lengths_held(name: str, inputs: BatchFeature) -> list[int]:
    """Tokens that the first layer and one of the second stage hold of a pruned prompt."""
    with torch.no_grad(), pruned(model_of(name), strategy(name)) as applied:
        model_of(name)(**inputs)
        last = last_of(applied)
    return [
        max(t + v[k] for t, v in zip(last.text_tokens, last.tokens_per_layer, strict=True))
        for k in (0, 3)
    ]


def test_a_window_fills_up_in_a_cache_that_knows_of_none() -> None:
    name = "gemma3-window"
    inputs, steps = first_row(name), [torch.full((1, 1), 9)] * 8
    for length in lengths_held(name, inputs):
        model = narrow(tiny(name), length + 4)
        config = adapter_for(model).backbone.config
        caches = DynamicCache(config=config), DynamicCache()
        with pruned(model, strategy(name)):
            said = [said_by(model, inputs, steps, past_key_values=cache) for cache in caches]
        torch.testing.assert_close(said[0], said[1], rtol=0, atol=FP32)


@pytest.mark.parametrize("rows", ["one", "ragged"])
@pytest.mark.parametrize("new", [2, 4, 6])
def test_a_window_that_fills_up_while_decoding(new: int, rows: str) -> None:
    name = "gemma3-window"
    inputs = first_row(name) if rows == "one" else inputs_of(name)
    for length in lengths_held(name, inputs):
        model = narrow(tiny(name), length + new)
        with pruned(model, strategy(name)) as applied:
            steps = generate(model, inputs)
            last = last_of(applied)
        expected = masked_logits(tiny(name), model, inputs, steps.ids, last, strategy(name))
        torch.testing.assert_close(steps.logits, expected, rtol=0, atol=FP32)
