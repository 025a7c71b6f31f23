"""Which adapter serves a model, and what a model is in a strategy file."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import nn

from vflowopt_search.adapters.base import Adapter, Family
from vflowopt_search.adapters.gemma3 import Gemma3Adapter, ShieldGemma2Adapter
from vflowopt_search.adapters.gemma4 import Gemma4Adapter
from vflowopt_search.adapters.generic import GenericAdapter
from vflowopt_search.adapters.glm4v import (
    Glm4vAdapter,
    Glm4vMoeAdapter,
    Glm46VAdapter,
    GlmgaAdapter,
    GlmOcrAdapter,
)
from vflowopt_search.adapters.granite_docling import GraniteDoclingAdapter
from vflowopt_search.adapters.idefics3 import Idefics3Adapter, SmolVLMAdapter
from vflowopt_search.adapters.internvl import InternVLAdapter
from vflowopt_search.adapters.llama4 import Llama4Adapter
from vflowopt_search.adapters.llava import LlavaAdapter
from vflowopt_search.adapters.llava_next import LlavaNextAdapter
from vflowopt_search.adapters.llava_next_video import LlavaNextVideoAdapter
from vflowopt_search.adapters.llava_onevision import LlavaOnevisionAdapter
from vflowopt_search.adapters.mistral3 import LightOnOcrAdapter, Mistral3Adapter
from vflowopt_search.adapters.molmo2 import Molmo2Adapter
from vflowopt_search.adapters.packed_patches import (
    Cosmos3EdgeAdapter,
    HunYuanVLAdapter,
    KimiK25Adapter,
    PaddleOCRVLAdapter,
    VideoLlama3Adapter,
)
from vflowopt_search.adapters.paligemma import PaliGemmaAdapter
from vflowopt_search.adapters.plugins import plugin_adapter, plugin_families
from vflowopt_search.adapters.qwen_relatives import (
    CohereCompassAdapter,
    HyperClovaXVisionAdapter,
    MuseGlimmerAdapter,
    MuseSparkAdapter,
)
from vflowopt_search.adapters.qwen_vl import (
    Cosmos3OmniAdapter,
    Exaone45Adapter,
    Qwen2VLAdapter,
    Qwen3OmniMoeThinkerAdapter,
    Qwen3VLAdapter,
    Qwen3VLMoeAdapter,
    Qwen25OmniThinkerAdapter,
    Qwen25VLAdapter,
)
from vflowopt_search.adapters.square_tiles import (
    AyaVisionAdapter,
    Cohere2VisionAdapter,
    DeepseekVLAdapter,
    DeepseekVLHybridAdapter,
    JanusAdapter,
    Ovis2Adapter,
    QianfanOCRAdapter,
    VipLlavaAdapter,
)
from vflowopt_search.adapters.unsupported import UNSUPPORTED
from vflowopt_search.adapters.video_llava import VideoLlavaAdapter
from vflowopt_search.errors import ModelError
from vflowopt_search.strategy import ModelIdentity

ADAPTERS: dict[str, type[Adapter]] = {
    adapter.family.model_type: adapter
    for adapter in (
        AyaVisionAdapter,
        Cohere2VisionAdapter,
        CohereCompassAdapter,
        Cosmos3EdgeAdapter,
        Cosmos3OmniAdapter,
        DeepseekVLAdapter,
        DeepseekVLHybridAdapter,
        Exaone45Adapter,
        Gemma3Adapter,
        Gemma4Adapter,
        Glm46VAdapter,
        Glm4vAdapter,
        Glm4vMoeAdapter,
        GlmgaAdapter,
        GlmOcrAdapter,
        GraniteDoclingAdapter,
        HunYuanVLAdapter,
        HyperClovaXVisionAdapter,
        Idefics3Adapter,
        InternVLAdapter,
        JanusAdapter,
        KimiK25Adapter,
        LightOnOcrAdapter,
        Llama4Adapter,
        LlavaAdapter,
        LlavaNextAdapter,
        LlavaNextVideoAdapter,
        LlavaOnevisionAdapter,
        Mistral3Adapter,
        Molmo2Adapter,
        MuseGlimmerAdapter,
        MuseSparkAdapter,
        Ovis2Adapter,
        PaddleOCRVLAdapter,
        PaliGemmaAdapter,
        QianfanOCRAdapter,
        Qwen25OmniThinkerAdapter,
        Qwen25VLAdapter,
        Qwen2VLAdapter,
        Qwen3OmniMoeThinkerAdapter,
        Qwen3VLAdapter,
        Qwen3VLMoeAdapter,
        ShieldGemma2Adapter,
        SmolVLMAdapter,
        VideoLlama3Adapter,
        VideoLlavaAdapter,
        VipLlavaAdapter,
    )
}

# Differ between two loads of one model, so they are no part of what the model is.
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def families() -> list[Family]:
    """The supported families, by name: our own, and those of packages installed beside us."""
    own = [adapter.family for adapter in ADAPTERS.values()]
    return sorted([*own, *plugin_families(ADAPTERS)], key=lambda family: family.model_type)


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a loaded model: our own, one of a package beside us, or one by structure.

    Raises:
        ModelError: no adapter serves this kind of model, or the one that should cannot be loaded.
        UnsupportedError: the family is served, but not this variant of it.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper is not the model
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    served = ADAPTERS.get(str(model_type)) or plugin_adapter(str(model_type))
    if served is not None:
        return served(model)
    if model_type in UNSUPPORTED:
        raise ModelError(
            f"models of type {model_type!r} cannot be pruned: {UNSUPPORTED[model_type]}; "
            f"supported are: {', '.join(sorted(ADAPTERS))}"
        )
    try:
        return GenericAdapter(model)
    except ModelError as error:
        raise ModelError(
            f"no adapter serves model_type {model_type!r} ({type(model).__name__}), and its "
            f"structure is not known either: {error}; "
            f"supported are: {', '.join(sorted(ADAPTERS))}; CONTRIBUTING.md shows how to add one"
        ) from error


def identity_of(model: nn.Module, name: str | None = None) -> ModelIdentity:
    """What a strategy file says of the model it was found for.

    Args:
        model: a loaded model of a supported family.
        name: the name or path it was loaded by; taken from its config when None.
    """
    adapter = adapter_for(model)
    config: Any = adapter.config
    return ModelIdentity(
        model_type=adapter.model_type,
        name=name or getattr(config, "_name_or_path", None) or None,
        revision=getattr(config, "_commit_hash", None),
        decoder_layers=len(adapter.decoder_layers),
        vision_layers=len(adapter.vision_attentions),
        hidden_size=int(adapter.backbone.config.hidden_size),
        config_sha256=config_sha256(config),
    )


def config_sha256(config: Any) -> str:
    """Fingerprint of a configuration, the same for every load of one model."""
    plain = _without_volatile(config.to_dict())
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_volatile(v) for k, v in value.items() if k not in _VOLATILE}
    return value
