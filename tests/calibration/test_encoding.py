"""A batch holds exactly what each sample alone would, padded on the left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from tests.tiny import BOS, CHAT_TEMPLATE, FAMILIES, VOCABULARY, tiny_model, tiny_processor
from vflowopt_search.calibration.encoding import encode, prompt_text
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.errors import CalibrationError, ModelError

PAD = VOCABULARY["<pad>"]
every_family = pytest.mark.parametrize("family", FAMILIES)


def noise(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 80).convert("RGB")


def sample(prompt: str, *sizes: tuple[int, int]) -> Sample:
    return Sample("s", prompt, tuple(noise(*size) for size in sizes))


def mixed() -> list[Sample]:
    """Square, wide, small and several images; prompts of several lengths."""
    return [
        sample("What is this?", (40, 40)),
        sample("Describe the long image in this picture, first left and then right.", (90, 30)),
        sample("What is on the first image that is not on the second?", (30, 60), (70, 50)),
        sample("Yes?", (20, 9)),
    ]


@every_family
def test_a_batch_is_its_samples_padded_on_the_left(family: str) -> None:
    processor, samples = tiny_processor(family), mixed()
    tokenizer: Any = processor.tokenizer
    tokenizer.padding_side = "right"  # as many checkpoints have it
    batch = encode(processor, samples)
    for row, one in enumerate(samples):
        alone = encode(processor, [one])
        length = alone["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][row, -length:], alone["input_ids"][0])
        assert (batch["input_ids"][row, :-length] == PAD).all()
        assert (
            batch["attention_mask"][row].tolist()
            == [0] * (batch["input_ids"].shape[1] - length) + [1] * length
        )
    assert (batch["attention_mask"] == 0).any()


@every_family
def test_the_model_sees_each_sample_as_if_alone(family: str) -> None:
    processor, samples = tiny_processor(family), mixed()
    model: Any = tiny_model(family)
    with torch.no_grad():
        together_BV = model(**encode(processor, samples)).logits[:, -1]
        alone_BV = torch.cat([model(**encode(processor, [one])).logits[:, -1] for one in samples])
    torch.testing.assert_close(together_BV, alone_BV, rtol=1e-4, atol=1e-4)
    assert (alone_BV[0] - alone_BV[1]).abs().max() > 0.1  # the samples do differ


def test_single_and_several_images_of_llava_onevision() -> None:
    batch = encode(tiny_processor("llava_onevision"), mixed())
    assert batch["batch_num_images"].tolist() == [1, 1, 2, 1]
    assert batch["pixel_values"].shape[0] == 5
    image_tokens = (batch["input_ids"] == VOCABULARY["<image>"]).sum(1).tolist()
    # several images are one tile and a newline each: 2 x (16 + 1)
    assert image_tokens[2] == 34
    # a square: 16 + 8 x (8 + newline)
    assert image_tokens[0] == 88


def test_images_come_before_the_question() -> None:
    text = prompt_text(tiny_processor("llava"), mixed()[2])
    assert text.startswith("USER: <image><image> What is on the first")
    assert text.endswith(" ASSISTANT:")


def test_without_a_chat_template() -> None:
    processor: Any = tiny_processor("llava")
    processor.chat_template = None
    assert prompt_text(processor, mixed()[2]).startswith("<image><image>\nWhat is on")
    assert (encode(processor, mixed())["input_ids"][2] == VOCABULARY["<image>"]).sum() == 32
    del processor.image_token
    with pytest.raises(ModelError, match="has neither a chat template nor an image token"):
        prompt_text(processor, mixed()[0])


def test_a_template_that_leaves_images_out() -> None:
    processor: Any = tiny_processor("llava")
    processor.chat_template = CHAT_TEMPLATE.replace("'<image>'", "''")
    with pytest.raises(ModelError, match="leaves images out; give the processor a template"):
        encode(processor, mixed())


def test_the_first_token_is_not_doubled() -> None:
    from tokenizers.processors import TemplateProcessing

    processor: Any = tiny_processor("llava")
    bos = VOCABULARY[BOS]
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bos)]
    )
    plain = encode(processor, mixed()[:1])["input_ids"][0]
    processor.chat_template = BOS + CHAT_TEMPLATE
    written = encode(processor, mixed()[:1])["input_ids"][0]
    assert plain.tolist() == written.tolist()
    assert (written == bos).sum() == 1


def test_no_samples() -> None:
    with pytest.raises(CalibrationError, match="there are no samples to encode"):
        encode(tiny_processor("llava"), [])


def test_the_batch_is_on_the_device() -> None:
    batch = encode(tiny_processor("llava"), mixed(), torch.device("meta"))
    assert {tensor.device.type for tensor in batch.values()} == {"meta"}
