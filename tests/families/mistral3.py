"""`mistral3`: a Pixtral tower whose patches are merged two by two, rows end in [IMG_BREAK]."""

from __future__ import annotations

from functools import partial

from transformers import Ministral3Config, Mistral3Config, MistralConfig, PreTrainedConfig

from tests.families import TinyFamily
from tests.families.llava import PIXTRAL_PROMPT, PIXTRAL_TOKENS, pixtral_inputs, pixtral_vision
from tests.tiny import PATCH, text_sizes, vocabulary_with

VOCABULARY = vocabulary_with(PIXTRAL_TOKENS)
MERGE = 2
SIZES = ((70, 56), (42, 98), (84, 56), (56, 56))  # (height, width) in pixels


def _config(text: PreTrainedConfig) -> Mistral3Config:
    return Mistral3Config(
        vision_config=pixtral_vision(),
        text_config=text,
        image_token_index=VOCABULARY["[IMG]"],
        spatial_merge_size=MERGE,
        tie_word_embeddings=False,
    )


def _mistral() -> Mistral3Config:
    sizes = text_sizes(len(VOCABULARY))
    return _config(MistralConfig(**sizes, head_dim=8, sliding_window=None))


def _ministral() -> Mistral3Config:
    """The text model of Ministral 3: its queries grow with the position, here every 16."""
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 2048 / 16,
        "original_max_position_embeddings": 16,
        "llama_4_scaling_beta": 0.1,
    }
    sizes = text_sizes(len(VOCABULARY))
    return _config(Ministral3Config(**sizes, head_dim=8, rope_parameters=rope))


FAMILIES = [
    TinyFamily(
        name=name,
        model_type="mistral3",
        config=config,
        processor=None,  # PixtralProcessor's file imports torchvision
        prompt=PIXTRAL_PROMPT,
        inputs=partial(pixtral_inputs, side=MERGE * PATCH, sizes=SIZES),
    )
    for name, config in (
        ("mistral3", _mistral),
        ("mistral3-ministral3", _ministral),
    )
]
