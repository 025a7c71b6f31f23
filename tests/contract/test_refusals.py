"""What cannot be done right is refused with a sentence that says so; what looks odd is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BatchFeature

from tests.contract.models import inputs_of, model_of
from tests.contract.oracle import generate, with_answer
from tests.contract.test_decoding import LOOKUPS, first_row
from tests.contract.test_removal import FP32, strategy_for
from tests.families import older_transformers, tiny
from tests.pruning.oracle import strategy_of
from vflowopt_search.deploy import pruned
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.strategy import Importance, Recycling, Strategy

FAMILIES = ("llava_onevision", "gemma3", "qwen2_vl")
by_family = pytest.mark.parametrize("name", FAMILIES)
needs_chunks = pytest.mark.skipif(
    older_transformers(), reason="transformers: in chunks, a prompt's pixels are dropped"
)


def strategy(name: str) -> Strategy:
    """Stages at layers 0 and 3, with recycling."""
    return strategy_for(name, "0+3", recycling=True, positions="original")


def by_text(name: str) -> Strategy:
    """A second stage that chooses by attention of the last prompt token."""
    first = strategy(name)
    return strategy_of(
        (0, 0.6),
        (3, 0.5),
        scores=[None, "text_attention"],
        importance=first.importance,
        recycling=Recycling(cell=2.0),
    )


@needs_chunks
@by_family
@pytest.mark.parametrize("size", [1, 2, 12, 22])
def test_prefill_in_chunks_is_refused(name: str, size: int) -> None:
    model, inputs = model_of(name), inputs_of(name)
    with (
        pytest.raises(UnsupportedError, match=r"prefill_chunk_size"),
        pruned(model, strategy(name)),
    ):
        model.generate(**inputs, prefill_chunk_size=size, max_new_tokens=2)


@needs_chunks
def test_chunks_that_leave_the_images_whole_are_right() -> None:
    # all images are in the first chunk, so pruning sees what it needs
    model = model_of("llava")
    more = torch.tensor([[20, 21, 22, 23, 24, 25]])
    inputs = BatchFeature(with_answer(first_row("llava"), more, 0))
    size = inputs["input_ids"].shape[1] - 4
    with pruned(model, strategy("llava")):
        whole = generate(model, inputs)
        chunks = generate(model, inputs, prefill_chunk_size=size)
    assert chunks.ids.tolist() == whole.ids.tolist()
    new = whole.logits.shape[1]
    torch.testing.assert_close(chunks.logits[:, -new:], whole.logits, rtol=0, atol=FP32)


@by_family
def test_images_in_a_later_turn_are_refused(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    with torch.no_grad(), pruned(model, strategy(name)):
        cache = model(**inputs).past_key_values
        mask = torch.cat([inputs["attention_mask"]] * 2, dim=1)
        again = dict(inputs) | {"attention_mask": mask, "past_key_values": cache}
        with pytest.raises(UnsupportedError, match=r"an image came after .* start from an empty"):
            model(**again)


@by_family
def test_logits_at_chosen_positions_are_refused(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    with (
        torch.no_grad(),
        pytest.raises(UnsupportedError, match=r"positions, which pruning moves; pass the number"),
        pruned(model, strategy(name)),
    ):
        model(**inputs, logits_to_keep=torch.tensor([3, 5]))


@pytest.mark.parametrize("name", sorted({*FAMILIES, *LOOKUPS}))
def test_prompt_lookup_is_refused_where_the_last_prompt_token_chooses(name: str) -> None:
    model = model_of(name)
    again = torch.tensor([[20, 21, 22, 23, 20, 21]])
    inputs = with_answer(first_row(name), again, tiny(name).new_token_type)
    with (
        pytest.raises(UnsupportedError, match=r"prompt-lookup decoding\) puts candidate tokens"),
        pruned(model, by_text(name)),
    ):
        model.generate(**inputs, prompt_lookup_num_tokens=3, max_new_tokens=5)


@by_family
@pytest.mark.parametrize("score", ["received_attention", "uniform", "random"])
def test_features_encoded_elsewhere_are_refused(name: str, score: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    pixels = {key: value for key, value in inputs.items() if key in ENCODER_INPUTS}
    rest = {key: value for key, value in inputs.items() if key != "pixel_values"}
    importance: Any = {"score": score, "vision_layer": 1}
    plan = strategy_of((0, 0.5), importance=Importance(**importance))
    with torch.no_grad():
        features = model.model.get_image_features(**pixels, return_dict=True)
        with (
            pytest.raises(UnsupportedError, match=r"features encoded inside the block"),
            pruned(model, plan),
        ):
            model(**rest, mm_encoder_outputs={"image": features})


ENCODER_INPUTS = ("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images")


def test_embeddings_without_ids_are_refused() -> None:
    model, inputs = model_of("llava"), inputs_of("llava")
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with (
        pytest.raises(UnsupportedError, match=r"inputs_embeds without input_ids"),
        pruned(model, strategy("llava")),
    ):
        model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])


def test_an_attention_mask_that_hides_padding_is_refused() -> None:
    model, inputs = model_of("llava"), inputs_of("llava")
    hidden = {"sliding_attention": inputs["attention_mask"][:, None, None]}
    with (
        pytest.raises(UnsupportedError, match=r"pass the 2-D attention_mask"),
        pruned(model, strategy("llava")),
    ):
        model(**(dict(inputs) | {"attention_mask": hidden}))


@pytest.mark.parametrize("kind", ["boolean", "additive"])
@pytest.mark.parametrize("name", ["llava", "llava_onevision", "internvl"])
def test_a_mask_made_by_hand_says_what_the_plain_one_says(name: str, kind: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    real_BS = inputs["attention_mask"].bool()
    size = real_BS.shape[1]
    causal_SS = torch.ones(size, size, dtype=torch.bool).tril()
    mask_B1SS = (causal_SS & real_BS[:, None])[:, None] | torch.eye(size, dtype=torch.bool)
    if kind == "additive":
        lowest = torch.finfo(torch.float32).min
        mask_B1SS = torch.zeros(mask_B1SS.shape).masked_fill(~mask_B1SS, lowest)
    with torch.no_grad(), pruned(model, strategy(name)) as applied:
        plain = model(**inputs).logits[:, -1]
        kept = applied.last.kept[3] if applied.last else []
        by_hand = model(**(dict(inputs) | {"attention_mask": mask_B1SS})).logits[:, -1]
    assert applied.last is not None
    for mine, expected in zip(applied.last.kept[3], kept, strict=True):
        assert torch.equal(mine, expected)
    torch.testing.assert_close(by_hand, plain, rtol=0, atol=FP32)


def test_a_vision_layer_that_sees_windows_only_is_refused() -> None:
    model = model_of("qwen2_5_vl")
    windowed = next(
        layer
        for layer in range(len(model.model.visual.blocks))
        if layer not in model.config.vision_config.fullatt_block_indexes
    )
    local = strategy_of((0, 0.5), importance=Importance(vision_layer=windowed))
    with (
        pytest.raises(
            UnsupportedError, match=f"reads vision layer {windowed}, which .* use one of"
        ),
        pruned(model, local),
    ):
        pass
