"""Models that cannot be pruned are refused with the reason."""

from __future__ import annotations

import json

import pytest
from transformers import BlipConfig, BlipForConditionalGeneration

from tests.command import run
from vflowopt_search.adapters.registry import ADAPTERS, adapter_for
from vflowopt_search.adapters.unsupported import UNSUPPORTED
from vflowopt_search.errors import ModelError


def test_the_list_is_sorted_and_names_nobody_who_is_served() -> None:
    assert list(UNSUPPORTED) == sorted(UNSUPPORTED)
    assert not set(UNSUPPORTED) & set(ADAPTERS)


def test_a_reason_is_a_clause() -> None:
    for reason in UNSUPPORTED.values():
        assert reason[0].islower()
        assert not reason.endswith(".")


def test_the_reason_is_given() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = BlipConfig(
        text_config=sizes | {"intermediate_size": 8, "vocab_size": 40, "encoder_hidden_size": 8},
        vision_config=sizes | {"intermediate_size": 8, "image_size": 32},
    )
    with pytest.raises(ModelError, match=r"'blip' cannot be pruned: its decoder sees images by"):
        adapter_for(BlipForConditionalGeneration(config))


def test_the_command_line_lists_them_with_the_reason() -> None:
    told = json.loads(run("models", "--refused", "--json").stdout)
    assert {row["model_type"]: row["reason"] for row in told} == UNSUPPORTED
    printed = " ".join(run("models", "--refused").stdout.split())
    assert all(f" {name} " in f" {printed} " for name in UNSUPPORTED)
