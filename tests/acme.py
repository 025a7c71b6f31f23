"""LLaVA under a name that nobody serves: stands for a model that came after this package."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tests.tiny import EOS, PAD, VOCABULARY, randomise, tiny_config

# transformers annotates these in part only
_AutoConfig: Any = AutoConfig
_AutoModel: Any = AutoModelForImageTextToText
_GenerationConfig: Any = GenerationConfig


class AcmeConfig(LlavaConfig):  # type: ignore[no-untyped-call]
    model_type = "acme_vlm"


class AcmeVLM(LlavaForConditionalGeneration):  # type: ignore[no-untyped-call]
    config_class = AcmeConfig


def acme_model() -> Any:
    """A tiny random model of that type."""
    config = AcmeConfig(**{**tiny_config("llava").to_dict(), "model_type": "acme_vlm"})
    model: Any = AcmeVLM(config)
    randomise(model, 0)
    model.generation_config = _GenerationConfig(
        pad_token_id=VOCABULARY[PAD], eos_token_id=VOCABULARY[EOS], do_sample=False
    )
    return model.train(False)


def register() -> None:
    """Let transformers' automatic classes know the type, as its author's package would."""
    _AutoConfig.register("acme_vlm", AcmeConfig, exist_ok=True)
    _AutoModel.register(AcmeConfig, AcmeVLM, exist_ok=True)
