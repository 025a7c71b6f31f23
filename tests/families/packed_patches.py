"""PaddleOCR-VL and others: all images' patches in one sequence, SigLIP's layers.

HunYuan-VL puts learned tokens at row ends and around each image; VideoLLaMA 3 has plain positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin
from transformers.models.cosmos3_edge.configuration_cosmos3_edge import Cosmos3EdgeConfig
from transformers.models.cosmos3_edge.image_processing_pil_cosmos3_edge import (
    Cosmos3EdgeImageProcessorPil,
)
from transformers.models.cosmos3_edge.processing_cosmos3_edge import Cosmos3EdgeProcessor
from transformers.models.hunyuan_vl.configuration_hunyuan_vl import HunYuanVLConfig
from transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl import (
    HunYuanVLImageProcessorPil,
)
from transformers.models.hunyuan_vl.processing_hunyuan_vl import HunYuanVLProcessor
from transformers.models.kimi_k25.configuration_kimi_k25 import Kimi_K25Config
from transformers.models.paddleocr_vl.configuration_paddleocr_vl import PaddleOCRVLConfig
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import (
    PaddleOCRVLImageProcessorPil,
)
from transformers.models.paddleocr_vl.processing_paddleocr_vl import PaddleOCRVLProcessor
from transformers.models.video_llama_3.configuration_video_llama_3 import VideoLlama3Config
from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import (
    VideoLlama3ImageProcessorPil,
)
from transformers.models.video_llama_3.processing_video_llama_3 import VideoLlama3Processor

from tests.families import TinyFamily
from tests.families.mrope import image_options, several_images, sizes_of_text, untyped, videos
from tests.families.qwen2_vl import END, IMAGE, MARKUP, PROMPT, START, VIDEO
from tests.families.qwen3_vl import TIMED, lively_experts
from tests.tiny import PATCH, TILE, text_sizes, tiny_tokenizer, vocabulary_with
from vflowopt_search.adapters.processors import without_video

IDS = MARKUP.token_ids()
NAMED = {"image_token": IMAGE, "image_start_token": START, "image_end_token": END}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "patch_size": PATCH,
}


def _paddle_config() -> PaddleOCRVLConfig:
    return PaddleOCRVLConfig(
        text_config=sizes_of_text(MARKUP) | {"head_dim": 8},
        vision_config=VISION | {"image_size": 2 * TILE},
        image_token_id=IDS[IMAGE],
        video_token_id=IDS[VIDEO],
        vision_start_token_id=IDS[START],
        vision_end_token_id=IDS[END],
    )


def _hunyuan_config() -> HunYuanVLConfig:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1, 1]}
    text = text_sizes(len(vocabulary_with(MARKUP.special)))
    return HunYuanVLConfig(
        text_config=text | {"rope_parameters": rope, "head_dim": 8},
        vision_config=VISION | {"max_image_size": 4 * TILE},
        image_token_id=IDS[IMAGE],
        im_start_id=IDS[START],
        im_end_id=IDS[END],
    )


def _llama_config() -> VideoLlama3Config:
    text = text_sizes(len(vocabulary_with(MARKUP.special)))
    return VideoLlama3Config(
        text_config=text | {"model_type": "qwen2"},
        vision_config=VISION,
        image_token_id=IDS[IMAGE],
        video_token_id=IDS[VIDEO],
    )


def _kimi_config() -> Kimi_K25Config:
    text = text_sizes(len(vocabulary_with(MARKUP.special)))
    latent = {
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    }
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    }
    return Kimi_K25Config(
        text_config=text | latent | experts | {"model_type": "deepseek_v3"},
        vision_config=VISION | {"pos_emb_height": 8, "pos_emb_width": 8},
        projection_hidden_size=32,
        image_token_id=IDS[IMAGE],
        video_token_id=IDS[VIDEO],
        vision_start_token_id=IDS[START],
        vision_end_token_id=IDS[END],
        tie_word_embeddings=False,
    )


def _edge_config() -> Cosmos3EdgeConfig:
    return Cosmos3EdgeConfig(
        text_config=sizes_of_text(MARKUP) | {"head_dim": 8},
        vision_config=VISION | {"num_patches": 64},
        projector_hidden_size=64,
        image_token_id=IDS[IMAGE],
        video_token_id=IDS[VIDEO],
        vision_start_token_id=IDS[START],
        vision_end_token_id=IDS[END],
    )


def _processor(kind: Any, image_kind: Any) -> ProcessorMixin:
    tokenizer: Any = tiny_tokenizer(MARKUP.special)
    tokenizer._set_model_specific_special_tokens(special_tokens=NAMED)
    processor: ProcessorMixin = without_video(kind)(
        image_processor=image_kind(**image_options() | {"temporal_patch_size": 1}),
        tokenizer=tokenizer,
        chat_template=MARKUP.chat_template(),
    )
    return processor


def paddle_processor() -> ProcessorMixin:
    """PaddleOCR-VL's processor, which serves whoever cuts images alike."""
    return _processor(PaddleOCRVLProcessor, PaddleOCRVLImageProcessorPil)


def _hunyuan_processor() -> ProcessorMixin:
    return _processor(HunYuanVLProcessor, HunYuanVLImageProcessorPil)


def _llama_processor() -> ProcessorMixin:
    return _processor(VideoLlama3Processor, VideoLlama3ImageProcessorPil)


def _edge_processor() -> ProcessorMixin:
    return _processor(Cosmos3EdgeProcessor, Cosmos3EdgeImageProcessorPil)


def _edge_inputs(dtype: torch.dtype) -> BatchFeature:
    """With the types of tokens, which the model wants and its processor leaves out."""
    batch = several_images(MARKUP, _edge_processor)(dtype)
    batch["mm_token_type_ids"] = (batch["input_ids"] == IDS[IMAGE]).long()
    return batch


def _lively(model: Any) -> None:
    """Where the head is the embeddings, these must be small for logits of a usual size."""
    lively_experts(model)
    embeddings = model.get_input_embeddings().weight
    if model.config.tie_word_embeddings:
        embeddings.data /= embeddings.shape[1] ** 0.5
    else:
        MARKUP.unsaid(model)


# Kimi's own processor needs torchvision; PaddleOCR-VL's cuts images alike
OWN_INPUTS = {
    "cosmos3_edge": _edge_inputs,
    "kimi_k25": untyped(several_images(MARKUP, paddle_processor)),
}
MODELS: tuple[
    tuple[str, Callable[[], PreTrainedConfig], Callable[[], ProcessorMixin] | None], ...
] = (
    ("cosmos3_edge", _edge_config, _edge_processor),
    ("hunyuan_vl", _hunyuan_config, _hunyuan_processor),
    ("kimi_k25", _kimi_config, None),
    ("paddleocr_vl", _paddle_config, paddle_processor),
    ("video_llama_3", _llama_config, _llama_processor),
)
FAMILIES = [
    TinyFamily(
        name=model_type,
        model_type=model_type,
        config=config,
        inputs=OWN_INPUTS.get(model_type) or several_images(MARKUP, processor or paddle_processor),
        processor=processor,
        prompt=PROMPT,
        tweak=_lively,
        # experts are chosen and weighed in fp32 whatever the model's precision
        fp64=5e-6 if model_type == "kimi_k25" else 1e-9,
    )
    for model_type, config, processor in MODELS
] + [
    TinyFamily(
        name="cosmos3_edge-video",
        model_type="cosmos3_edge",
        config=_edge_config,
        inputs=videos(TIMED, _edge_processor),
        processor=_edge_processor,
        prompt=PROMPT,
        tweak=_lively,
    )
]
