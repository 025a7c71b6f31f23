"""Every family: however tokens are decoded, removing visual tokens equals masking them.

Shape suffixes: B = rows, T = new tokens, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from fnmatch import fnmatch
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BatchFeature

from tests.contract.models import every_family, inputs_of, model_of
from tests.contract.oracle import NEW_TOKENS, generate, masked_logits, placeholders, with_answer
from tests.contract.test_removal import FP32, strategy_for
from tests.families import older_transformers, tiny
from tests.pruning.oracle import strategy_of
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.deploy import pruned
from vflowopt_search.pruning.record import Applied, LastPrefill
from vflowopt_search.reference.encoder import encode_vision
from vflowopt_search.strategy import Strategy

BEAMS = 3
LOOKUPS = ("llava", "llava_onevision", "gemma3-window", "qwen2_vl", "llama4-chunks")
CACHED = ("llava_onevision", "gemma3", "qwen3_vl", "internvl")

# What transformers itself, without any pruning, gets wrong or cannot do.
NO_BEAMS = {
    "glm*-images": "one picture's features are repeated where another's belong",
    "glm*-video": "features of videos are looked for by the token id of pictures",
    "llama4*": "features are not repeated for every beam",
}
NO_SECOND_TURN = {"qwen2_5_vl-video": "a turn later, text counts on from the latest frame"}
# And what only older versions (5.17) do.
OLDER = older_transformers()
NO_BEAMS |= {"exaone4_5*": "its visual inputs are cut by another model's marks"} if OLDER else {}
NO_CACHELESS = {"paligemma*": "without a cache, answers belong to the prefix"} if OLDER else {}
NO_STATIC_CACHE = {"llama4*": "chunked masks refuse what generate passes"} if OLDER else {}


def strategy(name: str) -> Strategy:
    """Stages at layers 0 and 3, with recycling."""
    return strategy_for(name, "0+3", recycling=True, positions="original")


def by_text(name: str) -> Strategy:
    """Two stages inside the decoder that choose by attention of the last prompt token."""
    return strategy_of((2, 0.6), (4, 0.5), scores=["text_attention"] * 2)


Plan = Callable[[str], Strategy]
by_plan = pytest.mark.parametrize("plan", [strategy, by_text])


def last_of(applied: Applied) -> LastPrefill:
    """What happened in the last prefill; something was removed."""
    last = applied.last
    assert last is not None
    for total, per_layer in zip(last.visual_tokens, last.tokens_per_layer, strict=True):
        assert per_layer[-1] < total
    return last


def masked(name: str, ids: Tensor, last: LastPrefill, plan: Plan = strategy) -> Tensor:
    """What the masked model says at the last nine of these answers."""
    return masked_logits(tiny(name), model_of(name), inputs_of(name), ids, last, plan(name))


def first_row(name: str) -> BatchFeature:
    """The first prompt, which has one image, without its padding."""
    inputs = inputs_of(name)
    real_S, per_token = inputs["attention_mask"][0].bool(), inputs["input_ids"].shape
    row = {
        key: value[:1, real_S] if value.shape == per_token else value[:1]
        for key, value in inputs.items()
    }
    if "image_grid_thw" in row:
        row["pixel_values"] = inputs["pixel_values"][: int(row["image_grid_thw"].prod())]
    return BatchFeature(row)


def skip_known(name: str, known: Mapping[str, str]) -> None:
    """Skip what fails in transformers itself."""
    for pattern, reason in known.items():
        if fnmatch(name, pattern):
            pytest.skip(f"transformers: {reason}")


def skip_several_images_on_older(name: str) -> None:
    """Version 5.17 repeats images one by one, so that a row's two come as A A B B, not A B A B."""
    if OLDER:
        samples = encode_vision(adapter_for(model_of(name)), inputs_of(name), None)
        if any(len(sample.images) > 1 for sample in samples):
            pytest.skip("transformers: images of a row are mixed up among its beams")


@every_family
def test_every_beam_is_pruned_like_a_greedy_answer(name: str) -> None:
    skip_known(name, NO_BEAMS)
    skip_several_images_on_older(name)
    model, inputs = model_of(name), inputs_of(name)
    with torch.no_grad(), pruned(model, strategy(name)) as applied:
        model(**inputs)
        greedy = last_of(applied)
        found: Any = model.generate(
            **inputs,
            num_beams=BEAMS,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            suppress_tokens=placeholders(model),
            return_dict_in_generate=True,
            output_scores=True,
        )
        beams = last_of(applied)
    assert len(beams.visual_tokens) == BEAMS * len(greedy.visual_tokens)
    for layer, kept in greedy.kept.items():
        for row, by_beam in enumerate(beams.kept[layer]):
            assert torch.equal(by_beam, kept[row // BEAMS])
    ids = found.sequences[:, inputs["input_ids"].shape[1] :]
    logits_BTV = masked(name, ids, greedy)
    said_BT = logits_BTV.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    torch.testing.assert_close(found.sequences_scores, said_BT.mean(1), rtol=0, atol=FP32)


@every_family
@by_plan
def test_a_second_turn_goes_on_with_the_pruned_cache(name: str, plan: Plan) -> None:
    skip_known(name, NO_SECOND_TURN)
    model, inputs = model_of(name), inputs_of(name)
    more = torch.randint(8, 40, (3, 4), generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), pruned(model, plan(name)) as applied:
        first: Any = model.generate(
            **inputs,
            max_new_tokens=3,
            min_new_tokens=3,
            suppress_tokens=placeholders(model),
            return_dict_in_generate=True,
        )
        said = torch.cat([first.sequences, more], dim=1)
        grown = BatchFeature({"input_ids": said, "attention_mask": grown_mask(inputs, said)})
        second = generate(model, grown, past_key_values=first.past_key_values)
        last = last_of(applied)
    ids = torch.cat([said[:, inputs["input_ids"].shape[1] :], second.ids], dim=1)
    torch.testing.assert_close(second.logits, masked(name, ids, last, plan), rtol=0, atol=FP32)


def grown_mask(inputs: Any, ids: Tensor) -> Tensor:
    """The prompts' mask with ones behind it."""
    mask = inputs["attention_mask"]
    ones = mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])
    return torch.cat([mask, ones], dim=1)


@every_family
def test_decoding_without_a_cache(name: str) -> None:
    skip_known(name, NO_CACHELESS)
    model, inputs = model_of(name), inputs_of(name)
    with torch.no_grad(), pruned(model, strategy(name)) as applied:
        steps = generate(model, inputs, use_cache=False)
        last = last_of(applied)
    torch.testing.assert_close(steps.logits, masked(name, steps.ids, last), rtol=0, atol=FP32)


@every_family
def test_without_a_cache_the_newest_token_chooses(name: str) -> None:
    skip_known(name, NO_CACHELESS)
    model, inputs = model_of(name), inputs_of(name)
    with torch.no_grad(), pruned(model, by_text(name)) as applied:
        steps = generate(model, inputs, use_cache=False)
        last = last_of(applied)
    expected_BTV = masked(name, steps.ids, last, by_text)
    # earlier steps chose by their own newest token
    torch.testing.assert_close(steps.logits[:, -1], expected_BTV[:, -1], rtol=0, atol=FP32)


@every_family
@by_plan
def test_a_static_cache(name: str, plan: Plan) -> None:
    skip_known(name, NO_STATIC_CACHE)
    model, inputs = model_of(name), inputs_of(name)
    with torch.no_grad(), pruned(model, plan(name)) as applied:
        steps = generate(model, inputs, cache_implementation="static")
        last = last_of(applied)
    torch.testing.assert_close(steps.logits, masked(name, steps.ids, last, plan), rtol=0, atol=FP32)


@every_family
def test_every_layer_holds_what_was_planned(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    with torch.no_grad(), pruned(model, strategy(name)) as applied:
        found = model(**inputs, output_hidden_states=True)
        last = last_of(applied)
        plain = model(**inputs)
    for layer, held in enumerate(found.past_key_values.layers):
        longest = longest_row(last, layer)
        assert held.get_seq_length() == longest
        assert found.hidden_states[layer + 1].shape[1] == longest
    assert found.past_key_values.get_seq_length() == inputs["input_ids"].shape[1]
    assert torch.equal(found.logits, plain.logits)
    head = model.get_output_embeddings()
    assert torch.equal(head(found.hidden_states[-1])[:, -1], plain.logits[:, -1])


def longest_row(last: LastPrefill, layer: int) -> int:
    """Tokens that the longest row of a batch holds at a layer."""
    rows = zip(last.text_tokens, last.tokens_per_layer, strict=True)
    return max(text + visual[layer] for text, visual in rows)


@pytest.mark.parametrize("name", LOOKUPS)
def test_prompt_lookup_says_what_greedy_decoding_says(name: str) -> None:
    # the question ends as it began, so that candidates stand behind the prompt when it is read
    again = torch.tensor([[20, 21, 22, 23, 20, 21]])
    model, inputs = model_of(name), with_answer(first_row(name), again, tiny(name).new_token_type)
    read: list[int] = []
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "suppress_tokens": placeholders(model)}
    with torch.no_grad(), pruned(model, strategy(name)) as applied:
        greedy = model.generate(**inputs, **options)
        kept = last_of(applied).kept
        head = model.get_output_embeddings()
        hook = head.register_forward_hook(lambda m, a, out: read.append(out.shape[1]))
        looked_up = model.generate(**inputs, **options, prompt_lookup_num_tokens=3)
        hook.remove()
    assert read[0] == 4  # three candidates
    assert greedy.tolist() == looked_up.tolist()
    for layer, rows in last_of(applied).kept.items():
        assert [row.tolist() for row in rows] == [row.tolist() for row in kept[layer]]


@pytest.mark.skipif(OLDER, reason="transformers: no mm_encoder_outputs yet")
@pytest.mark.parametrize("name", CACHED)
def test_features_encoded_once_serve_several_prompts(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    ids = inputs["input_ids"]
    other = torch.where((ids >= 8) & (ids < 40), 47 - ids, ids)  # another question
    wanted = signature(model.model.get_image_features).parameters
    call = {key: inputs[key] for key in wanted if key in inputs}
    rest = {key: value for key, value in inputs.items() if not key.startswith("pixel")}
    with torch.no_grad(), pruned(model, strategy(name)) as applied:
        features = model.model.get_image_features(**call, return_dict=True)
        for prompt in (ids, other):
            from_pixels = model(**(dict(inputs) | {"input_ids": prompt})).logits
            kept = last_of(applied).kept[3]
            call = rest | {"input_ids": prompt, "mm_encoder_outputs": {"image": copy(features)}}
            cached = model(**call).logits
            torch.testing.assert_close(cached, from_pixels, rtol=0, atol=FP32)
            for mine, expected in zip(last_of(applied).kept[3], kept, strict=True):
                assert torch.equal(mine, expected)
