"""Features encoded before do what pixels do, on every version of transformers that serves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.contract.models import NAMES, inputs_of, model_of
from vflowopt_search.adapters import feeding as feeding_module
from vflowopt_search.adapters.feeding import encode_visuals, encoder_inputs, feeding
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.deploy import attached_engine
from vflowopt_search.reference.encoder import encode_vision, kinds_of
from vflowopt_search.reference.prepared import PreparedSet
from vflowopt_search.strategy import Importance, Stage, Strategy

WANTED = (
    "llava",
    "llava-pixtral",
    "llava_onevision-image+video",
    "llava_next_video-video",
    "idefics3",
    "gemma3",
    "hunyuan_vl",
    "llama4",
    "qwen2_5_omni_thinker",
    "qwen3_vl-images+video",
)
ALIKE = ("llava", "gemma3", "qwen2_vl")
"""Families whose features have one form in all versions."""

each = pytest.mark.parametrize("name", [name for name in WANTED if name in NAMES])


def prepared(name: str) -> PreparedSet:
    adapter = adapter_for(model_of(name))
    return PreparedSet(adapter, encode_vision(adapter, inputs_of(name), None), pad_token_id=0)


def count_runs(name: str, runs: list[int]) -> Any:
    tower = adapter_for(model_of(name)).vision_tower
    return tower.register_forward_pre_hook(lambda *_: runs.append(1))


def assert_fed_is_as_from_pixels(name: str) -> None:
    model, inputs, samples = model_of(name), inputs_of(name), prepared(name)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[:, -1]
        ids = model.generate(**inputs, **options)[:, -4:]
        runs: list[int] = []
        hook = count_runs(name, runs)
        with feeding(samples.adapter, samples.inputs(range(3))) as fed:
            fed_logits = model(**fed, use_cache=False).logits[:, -1]
            fed_ids = model.generate(**fed, **options)[:, -4:]
        hook.remove()
    torch.testing.assert_close(fed_logits, logits, rtol=0, atol=2e-5)
    assert torch.equal(fed_ids, ids)
    assert runs == []
    assert "get_image_features" not in vars(samples.adapter.base)


@each
def test_fed_is_as_from_pixels(name: str) -> None:
    assert_fed_is_as_from_pixels(name)


@pytest.mark.parametrize("name", ALIKE)
def test_the_way_of_older_versions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding_module, "takes_encoded", lambda adapter: False)
    assert_fed_is_as_from_pixels(name)
    assert_signals_stay(name)


@each
def test_signals_that_were_provided_stay(name: str) -> None:
    assert_signals_stay(name)


def assert_signals_stay(name: str) -> None:
    """Features are fed inside the engine's block; what it recorded before scores them."""
    model, inputs, samples = model_of(name), inputs_of(name), prepared(name)
    adapter = samples.adapter
    importance = Importance(vision_layer=adapter.vision_layers[-1])
    plan = Strategy(name="half", importance=importance, stages=(Stage(layer=0, keep_ratio=0.5),))
    with torch.no_grad(), attached_engine(model, plan) as engine:
        expected = model(**inputs, use_cache=False).logits[:, -1]
        for kind in kinds_of(adapter, inputs):
            encode_visuals(adapter, encoder_inputs(adapter, inputs, kind), kind)
        for kind, signals in engine.scoring.recorder.calls.items():
            engine.scoring.provide(signals, kind)
        with feeding(adapter, samples.inputs(range(3))) as fed:
            found = model(**fed, use_cache=False).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
