"""A batch holds exactly what each sample alone would, padded on the left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.video_utils import VideoMetadata

from tests.tiny import (
    BOS,
    CHAT_TEMPLATE,
    FAMILIES,
    MEAN,
    STD,
    VOCABULARY,
    tiny_model,
    tiny_processor,
)
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.prompts import prompt_text
from vflowopt_search.calibration.samples import Sample, Video
from vflowopt_search.errors import CalibrationError, ModelError, UnsupportedError

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


EXTREME = [(1, 1), (1, 2000), (2000, 1), (3, 3), (4000, 30), (30, 4000)]


@every_family
@pytest.mark.parametrize("size", EXTREME)
def test_pictures_of_extreme_sizes(family: str, size: tuple[int, int]) -> None:
    processor, model = tiny_processor(family), tiny_model(family)
    red = Sample("s", "Yes?", (Image.new("RGB", size, (255, 0, 0)),))
    batch = encode(processor, [red])
    colour = torch.tensor([1.0, 0, 0]).sub(torch.tensor(MEAN)).div(torch.tensor(STD))
    whole = batch["pixel_values"].reshape(-1, 3, 28, 28)[0]
    # the colour channel is not taken for a side of the picture; what is padded is black
    middle = whole[:, 14, 14]
    torch.testing.assert_close(middle, colour, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()


def thin_refused(processor: Any) -> Any:
    """The processor with the rule that Qwen's and others have."""
    inner = type(processor).__call__

    def refuse(self: Any, images: Any = None, **options: Any) -> Any:
        for image in (image for row in images or [] for image in row):
            if max(image.size) / min(image.size) > 200:
                raise ValueError("absolute aspect ratio must be smaller than 200\nand so on")
        return inner(self, images=images, **options)

    processor.__class__ = type("ThinProcessor", (type(processor),), {"__call__": refuse})
    return processor


def test_a_size_that_the_processor_refuses_is_told_with_its_sample() -> None:
    samples = [*mixed(), Sample("thin", "Yes?", (noise(8, 8), noise(1, 2000)))]
    sentence = (
        r"ThinProcessor refuses sample thin, whose pictures have the sizes 8 x 8, 1 x 2000 "
        r"\(absolute aspect ratio must be smaller than 200\); leave it out, or crop or resize them"
    )
    with pytest.raises(CalibrationError, match=sentence):
        encode(thin_refused(tiny_processor("llava")), samples)


def test_samples_that_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    processor: Any = tiny_processor("llava")
    inner = type(processor).__call__

    def refuse(self: Any, text: Any, **options: Any) -> Any:
        if len(text) > 1:
            raise RuntimeError("stack expects each tensor to be equal size")
        return inner(self, text=text, **options)

    monkeypatch.setattr(type(processor), "__call__", refuse)
    with pytest.raises(CalibrationError, match="these 4 samples one by one but not together"):
        encode(processor, mixed())


@every_family
def test_questions_without_images_stand_beside_others(family: str) -> None:
    processor, model = tiny_processor(family), tiny_model(family)
    texts = [sample("Yes?"), sample("What is this dog?")]
    alone = encode(processor, texts)
    assert set(alone) <= {"input_ids", "attention_mask"}
    together = encode(processor, [texts[0], *mixed(), texts[1]])
    with torch.no_grad():
        alone_BV = model(**alone).logits[:, -1]
        together_BV = model(**together).logits[:, -1]
    torch.testing.assert_close(together_BV[[0, -1]], alone_BV, rtol=1e-4, atol=1e-4)


def clip(num: int, **known: Any) -> Video:
    return Video(tuple(noise(20, 10) for _ in range(num)), **known)


class WithVideo:
    """A processor that notes what it is given."""

    chat_template = "{% for m in messages %}{% for c in m['content'] %}{{ c['type'] }} {% endfor %}"
    chat_template += "{% endfor %}"
    video_processor = "there"

    def __init__(self) -> None:
        self.tokenizer = tiny_processor("llava").tokenizer
        self.given: dict[str, Any] = {}

    def __call__(self, **given: Any) -> BatchFeature:
        self.given = given
        return BatchFeature({"input_ids": torch.zeros(1)})

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return " ".join(part["type"] for turn in messages for part in turn["content"])


def test_videos_go_to_the_processor_with_their_times() -> None:
    known = clip(2, fps=10.0, timestamps=(0.5, 1.9), source_frames=20)
    samples = [
        Sample("a", "Yes?", (), videos=(known,)),
        Sample("b", "Yes?", (noise(4, 4),), videos=(clip(3), known)),
    ]
    processor: Any = WithVideo()
    encode(processor, samples)
    given = processor.given
    assert given["text"] == ["video text", "image video video text"]
    assert [len(images) for images in given["images"]] == [0, 1]
    assert [len(frames) for frames in given["videos"]] == [2, 3, 2]
    assert given["videos_kwargs"]["do_sample_frames"] is False
    metadata = given["videos_kwargs"]["video_metadata"]
    assert [one["frames_indices"] for one in metadata] == [[5, 19], [0, 1, 2], [5, 19]]
    assert [one["fps"] for one in metadata] == [10.0, None, 10.0]
    assert [one["total_num_frames"] for one in metadata] == [20, 3, 20]
    assert VideoMetadata(**metadata[0]).timestamps == [0.5, 1.9]


@every_family
def test_a_processor_that_takes_no_videos(family: str) -> None:
    samples = [*mixed(), Sample("v", "Yes?", (), videos=(clip(2),))]
    with pytest.raises(UnsupportedError, match=r"has no video processor here.*install torchvision"):
        encode(tiny_processor(family), samples)


def test_no_samples() -> None:
    with pytest.raises(CalibrationError, match="there are no samples to encode"):
        encode(tiny_processor("llava"), [])


def test_the_batch_is_on_the_device() -> None:
    batch = encode(tiny_processor("llava"), mixed(), torch.device("meta"))
    assert {tensor.device.type for tensor in batch.values()} == {"meta"}
