"""FLOPs of a decoder: counted where its layers are alike, attention within its windows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.families import all_families, tiny
from tests.tiny import tiny_model
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.benchmark.costs import (
    DecoderCost,
    attention_windows,
    decoder_cost,
    decoder_shape,
)
from vflowopt_search.budget import ModelShape, prefill_flops

SHAPE = ModelShape(2, 8, 2, 1, 4, 16, 50)
COUNTS = st.tuples(st.integers(0, 300), st.integers(0, 300))


@pytest.mark.parametrize("name", sorted(all_families()))
def test_no_family_is_too_strange_to_be_looked_at(name: str) -> None:
    cost = decoder_cost(adapter_for(tiny(name).model()))
    assert cost is None or len(cost.windows) == cost.shape.decoder_layers


def test_a_size_that_layers_do_not_share_is_not_counted() -> None:
    assert decoder_shape(adapter_for(tiny("gemma4").model())) is None


def test_flops_are_counted_only_where_the_weights_are_as_counted() -> None:
    counted = decoder_shape(adapter_for(tiny_model("llava")))
    assert counted is not None and counted.num_kv_heads == 2
    assert decoder_shape(adapter_for(tiny("llama4").model())) is None  # experts
    model: Any = tiny_model("llava")
    model.model.language_model.layers[0].mlp.extra = torch.nn.Linear(2, 2)
    assert decoder_shape(adapter_for(model)) is None


def configured(depth: int = 2, **config: Any) -> Any:
    backbone = SimpleNamespace(config=SimpleNamespace(**config))
    return SimpleNamespace(backbone=backbone, decoder_layers=[None] * depth)


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        ({}, (None, None)),
        ({"sliding_window": 9}, (9, 9)),  # as in Mistral
        ({"sliding_window": 9, "use_sliding_window": False}, (None, None)),
        ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 9}, (9, None)),
        ({"layer_types": ["full_attention"] * 2, "sliding_window": 9}, (None, None)),
        ({"layer_types": ["chunked_attention", "full_attention"]}, None),
        ({"layer_types": ["full_attention"]}, None),
    ],
)
def test_windows_are_what_the_configuration_says(config: Any, windows: Any) -> None:
    assert attention_windows(configured(**config)) == windows


def test_gemma_looks_back_as_far_as_its_configuration_says() -> None:
    adapter = adapter_for(tiny("gemma3").model())
    config: Any = adapter.backbone.config
    cost = decoder_cost(adapter)
    assert cost is not None
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    assert [window is not None for window in cost.windows] == slides
    assert {*cost.windows} - {None} == {config.sliding_window}


def test_attention_within_a_window_by_hand() -> None:
    full = DecoderCost(SHAPE, (None, None)).prefill_flops([20, 20], 10)
    cut = DecoderCost(SHAPE, (None, 12)).prefill_flops([20, 20], 10)
    assert full == prefill_flops(SHAPE, [20, 20], 10)
    assert full - cut == 4 * 8 * (30 * 30 - 30 * 12)  # width 8; 12 keys instead of 30 to a query


@given(COUNTS, st.integers(1, 50), st.integers(1, 400))
def test_a_window_takes_nothing_from_what_fits_and_never_adds(
    alive: tuple[int, int], text: int, window: int
) -> None:
    full = prefill_flops(SHAPE, alive, text)
    cut = DecoderCost(SHAPE, (window, window)).prefill_flops(alive, text)
    assert 0 < cut <= full
    assert (cut == full) == (max(alive) + text <= window)
    wider = DecoderCost(SHAPE, (window + 1, window + 1)).prefill_flops(alive, text)
    assert wider >= cut
