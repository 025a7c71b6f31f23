"""Processor files of the testbed: word-level tokenizer, any-resolution images, chat template."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from vflowopt_search.testbed.model import PATCHES_PER_TILE, PINPOINTS, TILE
from vflowopt_search.testbed.vocabulary import (
    CHAT_TEMPLATE,
    EOS,
    IMAGE,
    PAD,
    SPECIAL_TOKENS,
    UNKNOWN,
    VIDEO,
    VOCABULARY,
)


def save_processor(folder: Path) -> None:
    """Write the ordinary processor files of a LLaVA-OneVision checkpoint."""
    _make_tokenizer().save_pretrained(folder)
    _make_image_processor().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    settings = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": PATCHES_PER_TILE,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
        "image_token": IMAGE,
        "video_token": VIDEO,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "processor_config.json").write_text(text, encoding="utf-8")


def _make_tokenizer() -> PreTrainedTokenizerFast:
    """Words parted by spaces, lower case; `<image>` may stand between them without spaces."""
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=EOS,
        extra_special_tokens=[t for t in SPECIAL_TOKENS if t not in (PAD, UNKNOWN, EOS)],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _make_image_processor() -> LlavaOnevisionImageProcessorPil:
    return LlavaOnevisionImageProcessorPil(
        size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
