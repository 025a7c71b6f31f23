"""What the Qwen-VL and GLM-V test families share: patches of 7 pixels, four to a token, 3-D rotary.

An image of 56 x 56 pixels is 4 x 4 tokens; sizes are rounded to multiples of 14 pixels.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from tests.families import QUESTIONS, noise_images, ragged
from tests.tiny import MEAN, PATCH, STD, text_sizes, vocabulary_with

IMAGE_SIZES = ((56, 56), (84, 42), (42, 70), (70, 56))
FRAME_SIZES = ((42, 42), (56, 28), (28, 42))
SMALLEST, LARGEST = 42 * 42, 84 * 84  # pixels of an image
PAIR = 2  # frames that share a patch, unless an image processor says otherwise


@dataclass(frozen=True)
class Markup:
    """How a family writes visual input: special tokens around placeholders.

    Attributes:
        image: the placeholder of an image's token.
        picture: an image with its marks, before its placeholder is repeated.
        video: text of a video from its frames' numbers of tokens.
        special: every special token of the family.
    """

    image: str
    picture: str
    video: Callable[[Sequence[int]], str]
    special: tuple[str, ...]

    def pictured(self, tokens: int) -> str:
        """An image of so many tokens."""
        return self.picture.replace(self.image, self.image * tokens)

    def token_ids(self) -> dict[str, int]:
        """Ids of the special tokens."""
        vocabulary = vocabulary_with(self.special)
        return {token: vocabulary[token] for token in self.special}

    def unsaid(self, model: Any) -> None:
        """Keep a random model from answering with an image: its logit of every mark is 0."""
        model.get_output_embeddings().weight.data[list(self.token_ids().values())] = 0

    def chat_template(self) -> str:
        """One line per message, `USER: ` or `ASSISTANT: ` before it."""
        return (
            "{% for message in messages %}"
            "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
            "{% for part in message['content'] %}"
            "{{ '" + self.picture + "' if part['type'] == 'image' else ' ' + part['text'] }}"
            "{% endfor %}{{ ' ' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
        )


def sizes_of_text(markup: Markup, **rope: Any) -> dict[str, Any]:
    """Six decoder layers whose rotary embedding splits its four frequencies over t, h and w."""
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    vocab_size = len(vocabulary_with(markup.special))
    return {**text_sizes(vocab_size), "rope_parameters": parameters | rope}


def image_options(frames: int = 1) -> dict[str, Any]:
    """Settings of an image processor; GLM-V counts the pixels of `frames` frames."""
    return {
        "patch_size": PATCH,
        "merge_size": 2,
        "temporal_patch_size": PAIR,
        "size": {"shortest_edge": frames * SMALLEST, "longest_edge": frames * LARGEST},
        "image_mean": MEAN,
        "image_std": STD,
    }


def single_images(
    markup: Markup, processor: Callable[[], ProcessorMixin]
) -> Callable[[torch.dtype], BatchFeature]:
    """Three prompts with one image each."""
    return _batch(markup, processor, images=(1, 1, 1), videos=(0, 0, 0))


def several_images(
    markup: Markup, processor: Callable[[], ProcessorMixin]
) -> Callable[[torch.dtype], BatchFeature]:
    """Three prompts with 1, 2 and 1 images."""
    return _batch(markup, processor, images=(1, 2, 1), videos=(0, 0, 0))


def videos(
    markup: Markup, processor: Callable[[], ProcessorMixin]
) -> Callable[[torch.dtype], BatchFeature]:
    """Three prompts with a video of 2, 3 and 4 frame pairs, no images."""
    return _batch(markup, processor, images=(0, 0, 0), videos=(1, 1, 1))


def untyped(make: Callable[[torch.dtype], BatchFeature]) -> Callable[[torch.dtype], BatchFeature]:
    """The same inputs without the types of tokens, of which plain positions make nothing."""

    def inputs(dtype: torch.dtype) -> BatchFeature:
        batch = make(dtype)
        del batch["mm_token_type_ids"]
        return batch

    return inputs


def images_and_videos(
    markup: Markup, processor: Callable[[], ProcessorMixin]
) -> Callable[[torch.dtype], BatchFeature]:
    """Three prompts: a video before an image, two images, an image (the video comes first)."""
    return _batch(markup, processor, images=(1, 2, 1), videos=(1, 0, 1))


def _batch(
    markup: Markup,
    make_processor: Callable[[], ProcessorMixin],
    images: Sequence[int],
    videos: Sequence[int],
) -> Callable[[torch.dtype], BatchFeature]:
    """A maker of left-padded prompts with so many images and videos to a row."""

    def make(dtype: torch.dtype) -> BatchFeature:
        processor = make_processor()
        pictures = iter(noise_images([IMAGE_SIZES[i] for i in range(sum(images))]))
        clips = [_clip(processor, number) for number in range(sum(videos))]
        spelled = iter([markup.video(_frame_tokens(grid_13)) for _, grid_13 in clips])
        rows = [[next(pictures) for _ in range(count)] for count in images]
        prompts = [
            f"USER: {''.join(next(spelled) for _ in range(clip))}"
            f"{markup.picture * len(row)} {question} ASSISTANT:"
            for row, clip, question in zip(rows, videos, QUESTIONS, strict=True)
        ]
        if any(videos):
            batch = _processed(processor, prompts, rows, markup)
        else:
            with warnings.catch_warnings():
                # GLM-V's own processor makes arrays of tensors the way numpy 2 complains of
                warnings.simplefilter("ignore", DeprecationWarning)
                batch = ragged(processor, prompts, rows)
        if clips:
            batch["pixel_values_videos"] = torch.cat([patches for patches, _ in clips])
            batch["video_grid_thw"] = torch.cat([grid_13 for _, grid_13 in clips])
        cast: BatchFeature = batch.to(dtype)
        return cast

    return make


def _processed(
    processor: Any, prompts: Sequence[str], rows: Sequence[Sequence[Image.Image]], markup: Markup
) -> BatchFeature:
    """What a processor makes of images and prompts; of the videos in them it needs to know nothing.

    A processor without its video part refuses prompts that spell out a video.
    """
    pictures = [picture for row in rows for picture in row]
    batch = BatchFeature()
    if pictures:
        batch = processor.image_processor(images=pictures, return_tensors="pt")
        counts = iter((batch["image_grid_thw"].prod(-1) // 4).tolist())
        prompts = [
            re.sub(re.escape(markup.picture), lambda _: markup.pictured(next(counts)), prompt)
            for prompt in prompts
        ]
    text = processor.tokenizer(
        list(prompts), padding=True, padding_side="left", return_tensors="pt"
    )
    kinds = processor.create_mm_token_type_ids(text["input_ids"].tolist())
    batch.update(text | {"mm_token_type_ids": torch.tensor(kinds)})
    return batch


def _clip(processor: ProcessorMixin, number: int) -> tuple[Tensor, Tensor]:
    """Flattened patches of a noise video of `number` + 2 frame pairs, and its grid (1, 3)."""
    image_processor: Any = getattr(processor, "image_processor")  # noqa: B009
    pair = image_processor.temporal_patch_size
    frames = noise_images([FRAME_SIZES[number]] * pair * (number + 2), seed=20 + number)
    batch = image_processor(images=frames, return_tensors="pt")
    [height, width] = batch["image_grid_thw"][0, 1:].tolist()
    # an image's patch holds the same pixels once per frame of a pair: take one, pair the frames
    one_FPCX = batch["pixel_values"].view(-1, height * width, 3, pair, PATCH**2)[:, :, :, 0]
    pairs = one_FPCX.unflatten(0, (-1, pair)).permute(0, 2, 3, 1, 4)
    grid_13 = torch.tensor([[number + 2, height, width]])
    return pairs.reshape(-1, 3 * pair * PATCH**2), grid_13


def _frame_tokens(grid_13: Tensor) -> list[int]:
    [frames, height, width] = grid_13[0].tolist()
    return [height * width // 4] * frames
