"""Relatives of LLaVA and InternVL, a prompt with two images among three.

Prompts and pixels are made by hand, for the processors of these families differ from LLaVA's in
how they cut images and spell tiles, which no adapter sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import (
    AyaVisionConfig,
    BatchFeature,
    CLIPVisionConfig,
    Cohere2Config,
    Cohere2VisionConfig,
    DeepseekVLConfig,
    DeepseekVLHybridConfig,
    JanusConfig,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    Ovis2Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SamVisionConfig,
    SiglipVisionConfig,
    VipLlavaConfig,
)
from transformers.models.ovis2.configuration_ovis2 import Ovis2VisionConfig
from transformers.models.qianfan_ocr.configuration_qianfan_ocr import (
    QianfanOCRConfig,
    QianfanOCRVisionConfig,
)

from tests.families import TinyFamily, older_transformers
from tests.families.llava import CLIP_SIZES, PROMPT, ROWS, filled, normalised, prompts, typed_out
from tests.tiny import IMAGE, PATCH, TILE, VOCABULARY, text_sizes, tiny_tokenizer, vocabulary_with

WIDE = 2 * TILE  # pixels of a tile whose patches are pooled
HIGH = 4 * TILE  # pixels of an image in high resolution
INDICATORS = tuple(f"<indicator_{number}>" for number in range(5))
WINDOW = 24  # shorter than the prompts


def square_inputs(
    dtype: torch.dtype, side: int, tokens: int, extra: Sequence[str] = (), frame: str = IMAGE
) -> BatchFeature:
    """Prompts of 1, 2 and 1 square images of `side` pixels, `tokens` placeholders each."""
    texts = [
        filled(text, IMAGE, [tokens] * count).replace(
            IMAGE * tokens, frame.replace(IMAGE, IMAGE * tokens)
        )
        for text, count in zip(prompts(PROMPT, IMAGE, ROWS), ROWS, strict=True)
    ]
    pictures = normalised([(side, side)] * sum(ROWS))
    batch = typed_out(tiny_tokenizer(extra), texts, pixel_values=torch.stack(pictures))
    return batch.to(dtype)


def siglip(side: int) -> SiglipVisionConfig:
    """A tower of four layers without a head."""
    return SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=side,
        patch_size=PATCH,
        vision_use_head=False,
    )


def _cohere2() -> Cohere2Config:
    """Two layers that look back `WINDOW` tokens, then one without positions that sees all."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    return Cohere2Config(**text_sizes(), sliding_window=WINDOW, layer_types=kinds, logit_scale=1.0)


def _aya_vision() -> AyaVisionConfig:
    return AyaVisionConfig(
        vision_config=siglip(WIDE),
        text_config=_cohere2(),
        image_token_index=VOCABULARY[IMAGE],
    )


def _cohere2_vision() -> Cohere2VisionConfig:
    return Cohere2VisionConfig(
        vision_config=siglip(WIDE),
        text_config=_cohere2(),
        image_token_id=VOCABULARY[IMAGE],
        alignment_intermediate_size=64,
    )


def _deepseek_vl() -> DeepseekVLConfig:
    return DeepseekVLConfig(
        vision_config=siglip(TILE),
        text_config=LlamaConfig(**text_sizes()),
        image_token_id=VOCABULARY[IMAGE],
    )


def _deepseek_vl_hybrid() -> DeepseekVLHybridConfig:
    high = SamVisionConfig(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=HIGH,
        patch_size=PATCH,
        window_size=4,
        global_attn_indexes=[1],
        mlp_dim=64,
        num_pos_feats=16,
    )
    return DeepseekVLHybridConfig(
        vision_config=siglip(TILE),
        high_res_vision_config=high,
        text_config=LlamaConfig(**text_sizes()),
        image_token_id=VOCABULARY[IMAGE],
    )


def _hybrid_inputs(dtype: torch.dtype) -> BatchFeature:
    """The same images in two sizes."""
    batch = square_inputs(dtype, TILE, 16)
    pictures = normalised([(HIGH, HIGH)] * sum(ROWS))
    batch["high_res_pixel_values"] = torch.stack(pictures).to(dtype)
    return batch


def _janus() -> JanusConfig:
    vision = JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=TILE,
        patch_size=PATCH,
        projection_dim=32,
        num_image_tokens=16,
    )
    drawing = JanusVQVAEConfig(
        num_embeddings=16,
        base_channels=32,
        channel_multiplier=[1],
        latent_channels=32,
        num_res_blocks=1,
        num_patches=4,
        projection_dim=32,
        image_token_embed_dim=32,
    )
    return JanusConfig(
        vision_config=vision,
        vq_config=drawing,
        text_config=LlamaConfig(**text_sizes()),
        image_token_id=VOCABULARY[IMAGE],
    )


def _vipllava() -> VipLlavaConfig:
    # transformers 5.17 spells it with an s
    name = "vision_feature_layers" if older_transformers() else "vision_feature_layer"
    layers: dict[str, Any] = {name: [-1, -2, 1]}
    return VipLlavaConfig(
        vision_config=CLIPVisionConfig(**CLIP_SIZES),
        text_config=LlamaConfig(**text_sizes()),
        image_token_index=VOCABULARY[IMAGE],
        **layers,
    )


def _ovis2() -> Ovis2Config:
    vocabulary = vocabulary_with(INDICATORS)
    vision = Ovis2VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=WIDE,
        patch_size=PATCH,
        vocab_size=64,
        hidden_stride=2,
    )
    return Ovis2Config(
        vision_config=vision,
        text_config=Qwen2Config(**text_sizes(len(vocabulary))),
        image_token_id=vocabulary[IMAGE],
        visual_indicator_token_ids=[vocabulary[token] for token in INDICATORS],
        vocab_size=len(vocabulary),
        hidden_size=32,
    )


def _qianfan_ocr() -> QianfanOCRConfig:
    vision = QianfanOCRVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=WIDE,
        patch_size=PATCH,
        drop_path_rate=0.0,  # in training it would leave out layers by chance
    )
    return QianfanOCRConfig(
        vision_config=vision,
        text_config=Qwen3Config(**text_sizes(), head_dim=8),
        image_token_id=VOCABULARY[IMAGE],
        image_seq_length=16,
    )


def quiet(model: Any) -> None:
    """Where the head is the embeddings, unit ones would give logits far above a usual size."""
    embeddings = model.get_input_embeddings().weight
    if model.get_output_embeddings().weight is embeddings:
        embeddings.data /= embeddings.shape[1] ** 0.5


def _unsaid(model: Any) -> None:
    """Keep a random model from saying an indicator, whose embedding its base would replace."""
    quiet(model)
    ids = [vocabulary_with(INDICATORS)[token] for token in INDICATORS]
    model.get_output_embeddings().weight.data[ids] = 0


def _scaled(model: Any) -> None:
    """Layer scales near one: drawn like biases, they would silence the vision layers."""
    for name, parameter in model.named_parameters():
        if name.endswith(("lambda_1", "lambda_2")):
            parameter.data += 1


def _variant(
    model_type: str,
    config: Callable[[], PreTrainedConfig],
    inputs: Callable[[torch.dtype], BatchFeature],
    tweak: Callable[[Any], None] = quiet,
) -> TinyFamily:
    return TinyFamily(
        name=model_type,
        model_type=model_type,
        config=config,
        processor=None,  # prompts are made by hand, see above
        prompt=PROMPT,
        inputs=inputs,
        tweak=tweak,
    )


_TILES = partial(square_inputs, side=WIDE, tokens=16)
_WHOLE = partial(square_inputs, side=TILE, tokens=16)
_FRAMED = INDICATORS[0] + IMAGE + INDICATORS[1]
_INDICATED = partial(square_inputs, side=WIDE, tokens=16, extra=INDICATORS, frame=_FRAMED)
FAMILIES = [
    _variant("aya_vision", _aya_vision, _TILES),
    _variant("cohere2_vision", _cohere2_vision, _TILES),
    _variant("deepseek_vl", _deepseek_vl, _WHOLE),
    _variant("deepseek_vl_hybrid", _deepseek_vl_hybrid, _hybrid_inputs),
    _variant("janus", _janus, _WHOLE),
    _variant("ovis2", _ovis2, _INDICATED, tweak=_unsaid),
    _variant("qianfan_ocr", _qianfan_ocr, _TILES, tweak=_scaled),
    _variant("vipllava", _vipllava, _WHOLE),
]
