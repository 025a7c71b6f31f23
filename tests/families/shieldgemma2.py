"""ShieldGemma 2: Gemma 3 under another name."""

from __future__ import annotations

import dataclasses

from transformers import PreTrainedConfig, ShieldGemma2Config

from tests.families import gemma3


def _config() -> PreTrainedConfig:
    options = gemma3.FAMILIES[0].config().to_dict()
    del options["model_type"]
    return ShieldGemma2Config(**options)


# its processor is a class of its own, which writes policies into prompts
FAMILIES = [
    dataclasses.replace(
        gemma3.FAMILIES[1],
        name="shieldgemma2",
        model_type="shieldgemma2",
        config=_config,
        processor=None,
    )
]
