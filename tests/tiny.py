"""Tiny random models and their processors, made offline; what they say depends on the seed alone.

`llava`: CLIP tower, image of 28 pixels in patches of 7 (16 tokens), six Llama layers.
`llava_onevision`: SigLIP tower, tiles of 28 pixels in patches of 7 (16 tokens a tile), pinpoints
{28, 56}^2 (a square image: 16 + 8 x (8 + newline) = 88 tokens), six Qwen2 layers.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2Config,
    SiglipVisionConfig,
)

from vflowopt_search.adapters.processors import without_video

# transformers annotates these in part only
_AutoModel: Any = AutoModelForImageTextToText
_Tokenizer: Any = PreTrainedTokenizerFast
_LlavaProcessor: Any = LlavaProcessor
_GenerationConfig: Any = GenerationConfig

FAMILIES = ("llava", "llava_onevision")
TILE = 28  # pixels
PATCH = 7  # pixels
TOKENS_PER_TILE = (TILE // PATCH) ** 2
PINPOINTS = [[TILE, TILE], [TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]

PAD, UNKNOWN, BOS, EOS, IMAGE, VIDEO = "<pad>", "<unk>", "<s>", "</s>", "<image>", "<video>"
SPECIAL = (PAD, UNKNOWN, BOS, EOS, IMAGE, VIDEO)
_LEXICON = (
    "USER: ASSISTANT: what which how many is are the a of in on there colour color shape object "
    "objects image picture describe describe. image. this one two three first second long left "
    "right top bottom red green blue white black yes no cat dog and or it that with many? image? "
    "Describe What"
)
WORDS = _LEXICON.split()
VOCABULARY = {
    token: index
    for index, token in enumerate(dict.fromkeys((*SPECIAL, *WORDS, *string.printable[:94])))
}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else ' ' + part['text'] }}"
    "{% endfor %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tiny_model(
    family: str, *, attn: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0
) -> PreTrainedModel:
    """A random model in eval mode; weights are scaled so that its logits differ between inputs."""
    model: PreTrainedModel = _AutoModel.from_config(tiny_config(family), attn_implementation=attn)
    randomise(model, seed)
    return ready(model, dtype)


def ready(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A model in this dtype and in eval mode, that ends and pads as the tiny tokenizers do."""
    for parameter in model.parameters():  # buffers (rotary frequencies) stay in float32
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    model.generation_config = _GenerationConfig(
        pad_token_id=VOCABULARY[PAD], eos_token_id=VOCABULARY[EOS], do_sample=False
    )
    evaluated: PreTrainedModel = model.train(False)
    return evaluated


def tiny_processor(family: str) -> ProcessorMixin:
    """The processor that belongs to `tiny_model(family)`; torchvision is not needed."""
    return _PROCESSORS[family]()


def save_checkpoint(folder: Path, family: str, *, seed: int = 0) -> Path:
    """Write what a hub checkpoint of this family holds into `folder`, and return the folder."""
    processor = tiny_processor(family)
    tiny_model(family, seed=seed).save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    image = processor.image_processor.to_dict()
    image["image_processor_type"] = image["image_processor_type"].removesuffix("Pil")
    image["processor_class"] = type(processor).__name__
    options = {
        key: value
        for key, value in processor.to_dict().items()
        if key not in ("image_processor", "tokenizer", "chat_template")
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(image, indent=2))
    (folder / "processor_config.json").write_text(json.dumps(options, indent=2))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    if family == "llava_onevision":
        video = image | {"video_processor_type": "LlavaOnevisionVideoProcessor"}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2))
    return folder


def tiny_config(family: str) -> PreTrainedConfig:
    """Configuration of a family's tiny model."""
    return _CONFIGS[family]()


def tiny_tokenizer(extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token per known word, one per character of any other word, `extra` special ones."""
    known = "|".join(word.replace("?", r"\?").replace(".", r"\.") for word in WORDS)
    vocabulary = vocabulary_with(extra)
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    # \s+ is dropped, a whole known word is one piece, anything else falls apart into characters
    tokenizer.pre_tokenizer = Split(
        Regex(rf"(?:(?<!\S)(?:{known})(?!\S))|\S"), behavior="removed", invert=True
    )
    tokens: PreTrainedTokenizerFast = _Tokenizer(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[IMAGE, VIDEO, *extra],
        model_max_length=2048,
        padding_side="left",
    )
    return tokens


def vocabulary_with(extra: Sequence[str] = ()) -> dict[str, int]:
    """Token ids: `VOCABULARY`, then the special tokens of a family."""
    return VOCABULARY | {token: len(VOCABULARY) + i for i, token in enumerate(extra)}


def noise_image(size: tuple[int, int], generator: torch.Generator) -> Image.Image:
    """Coarse random blocks, so that patches differ in entropy and content."""
    coarse = torch.randint(0, 256, (1, 3, 6, 6), generator=generator).float()
    fine = torch.nn.functional.interpolate(coarse, size=(size[1], size[0]), mode="bilinear")
    noise = torch.randn(fine.shape, generator=generator) * torch.linspace(0, 40, size[0])
    pixels = (fine + noise).clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.numpy())


def _llava_config() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=TILE,
        patch_size=PATCH,
        projection_dim=32,
    )
    text = LlamaConfig(**text_sizes())
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY[IMAGE],
        image_seq_length=TOKENS_PER_TILE,
    )


def _llava_onevision_config() -> LlavaOnevisionConfig:
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=TILE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**text_sizes()),
        image_token_index=VOCABULARY[IMAGE],
        video_token_index=VOCABULARY[VIDEO],
        image_grid_pinpoints=PINPOINTS,
    )


def text_sizes(vocab_size: int = len(VOCABULARY)) -> dict[str, Any]:
    """Sizes of a tiny decoder of six layers, for its configuration."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": VOCABULARY[PAD],
        "bos_token_id": VOCABULARY[BOS],
        "eos_token_id": VOCABULARY[EOS],
    }


def _llava_processor() -> ProcessorMixin:
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_mean=MEAN,
        image_std=STD,
    )
    processor: ProcessorMixin = _LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tiny_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return processor


def _llava_onevision_processor() -> ProcessorMixin:
    image_processor = LlavaOnevisionImageProcessorPil(
        size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
        image_mean=MEAN,
        image_std=STD,
    )
    return without_video(LlavaOnevisionProcessor)(
        image_processor=image_processor,
        tokenizer=tiny_tokenizer(),
        num_image_tokens=TOKENS_PER_TILE,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        vision_aspect_ratio="anyres_max_9",
    )


_CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llava": _llava_config,
    "llava_onevision": _llava_onevision_config,
}
_PROCESSORS: dict[str, Callable[[], ProcessorMixin]] = {
    "llava": _llava_processor,
    "llava_onevision": _llava_onevision_processor,
}


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Draw every weight by fan-in, so that no layer fades and attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if ("embed" in name and "patch" not in name) or "newline" in name:
                parameter.copy_(noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.1 * noise + (name.endswith("weight")))
            else:
                gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.copy_(gain * noise / math.sqrt(parameter[0].numel()))
