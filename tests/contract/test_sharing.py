"""Prompts, engines and wrappers that meet on one model do not take each other's state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import BatchFeature

from tests.contract.models import inputs_of, model_of
from tests.contract.test_removal import FP32
from tests.contract.test_training import rolled, samples
from tests.families import older_transformers
from tests.pruning.oracle import strategy_of
from vflowopt_search.deploy import prune, pruned
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.strategy import Importance, Strategy

TEXT = ("text_attention",)
encoded_features = pytest.mark.skipif(
    older_transformers(), reason="transformers: its forward takes no features"
)


def by_vision_layer(layer: int) -> Strategy:
    """Half of the tokens, by the attention of one vision layer."""
    return strategy_of((0, 0.5), importance=Importance(vision_layer=layer))


def kept_by(model: Any, inputs: dict[str, Any], strategy: Strategy) -> list[torch.Tensor]:
    """What is alive from the last stage on."""
    with torch.no_grad(), pruned(model, strategy) as applied:
        model(**inputs, use_cache=False)
    assert applied.last is not None
    return applied.last.kept[strategy.stages[-1].layer]


@pytest.mark.parametrize("name", ["llava", "llava_onevision", "gemma3", "qwen2_vl"])
def test_the_side_of_the_padding_does_not_matter_to_text_attention(name: str) -> None:
    model, inputs = model_of(name), dict(inputs_of(name))
    strategy = strategy_of((1, 0.3), scores=list(TEXT))
    on_the_left = kept_by(model, inputs, strategy)
    right = {key: rolled(inputs, value) for key, value in inputs.items()}
    on_the_right = kept_by(model, right, strategy)
    pads = (inputs["attention_mask"] == 0).sum(1).tolist()
    for left, other, pad in zip(on_the_left, on_the_right, pads, strict=True):
        assert torch.equal(left - pad, other)


def features_and_text(inputs: BatchFeature) -> tuple[dict[str, Any], dict[str, Any]]:
    """A LLaVA batch as arguments of the encoder and of the decoder."""
    text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    return {"pixel_values": inputs["pixel_values"]}, text


@encoded_features
def test_features_of_an_earlier_block_do_not_bring_its_signals() -> None:
    model, (pixels, text) = model_of("llava"), features_and_text(inputs_of("llava"))
    with torch.no_grad(), pruned(model, by_vision_layer(0)):
        encoded = model.model.get_image_features(**pixels, return_dict=True)
    with (
        torch.no_grad(),
        pruned(model, by_vision_layer(2)),
        pytest.raises(UnsupportedError, match="no image was encoded inside"),
    ):
        model(**text, mm_encoder_outputs={"image": encoded})


@encoded_features
def test_features_from_outside_do_not_take_the_signals_of_another_image() -> None:
    model, (pixels, text) = model_of("llava"), features_and_text(inputs_of("llava"))
    with torch.no_grad():
        outside = model.model.get_image_features(**pixels, return_dict=True)
        with pruned(model, by_vision_layer(2)):
            flipped = pixels["pixel_values"].flip(0)
            model.model.get_image_features(pixel_values=flipped, return_dict=True)
            with pytest.raises(UnsupportedError, match="no image was encoded inside"):
                model(**text, mm_encoder_outputs={"image": outside})


@encoded_features
def test_features_that_were_copied_on_their_way_are_known_by_their_values() -> None:
    model, (pixels, text) = model_of("llava"), features_and_text(inputs_of("llava"))
    with torch.no_grad(), pruned(model, by_vision_layer(2)) as applied:
        whole = model(**pixels, **text).logits
        encoded = model.model.get_image_features(**pixels, return_dict=True)
        again = type(encoded)(pooler_output=copy.deepcopy(encoded.pooler_output))
        assert torch.equal(model(**text, mm_encoder_outputs={"image": again}).logits, whole)
    assert applied.last is not None


def test_labels_and_arguments_do_not_outlive_their_forward() -> None:
    model, inputs = model_of("llava"), inputs_of("llava")
    batch = samples("llava")
    with torch.no_grad(), pruned(model, by_vision_layer(2)):
        expected = model.model(**inputs).last_hidden_state
        model(**batch)
        assert torch.equal(model.model(**inputs).last_hidden_state, expected)
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        with pytest.raises(UnsupportedError, match="inputs_embeds without input_ids"):
            model.model.language_model(inputs_embeds=embeds)


def test_training_by_the_last_prompt_token_is_refused() -> None:
    model = model_of("llava")
    strategy = strategy_of((0, 0.6), (3, 0.5), scores=[None, *TEXT])
    with (
        pytest.raises(UnsupportedError, match="labels were given, but the strategy scores by"),
        pruned(model, strategy),
    ):
        model(**samples("llava"))


# What transformers hands to torch.compile warns of deprecated things.
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_wrapper_and_its_model_are_one() -> None:
    model, inputs = model_of("llava"), inputs_of("llava")
    wrapper: Any = torch.compile(model, backend="eager")
    strategy = by_vision_layer(2)
    with torch.no_grad():
        with pruned(model, strategy):
            expected = model(**inputs).logits
        with pruned(wrapper, strategy):
            torch.testing.assert_close(wrapper(**inputs).logits, expected, rtol=0, atol=FP32)
            for same in (model, wrapper):
                with pytest.raises(UnsupportedError, match="pruned already"):
                    prune(same, strategy)


def test_what_was_applied_holds_nothing_of_the_model_afterwards() -> None:
    model, inputs = model_of("llava"), inputs_of("llava")
    with torch.no_grad(), pruned(model, by_vision_layer(2)) as applied:
        model(**inputs)
    assert applied.last is applied.last
