"""A strategy without a `with` block stays on with its model, and goes with it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.pruning.oracle import ragged_inputs, strategy_of
from tests.tiny import tiny_model
from vflowopt_search.deploy import prune
from vflowopt_search.strategy import Importance

# every way of watching a model: its encoder, its attention there, attention in the decoder
STRATEGIES = {
    "random": strategy_of((0, 0.5), scores=["random"]),
    "vision": strategy_of((0, 0.5), importance=Importance(vision_layer=2)),
    "text": strategy_of((2, 0.5), (4, 0.5), scores=["text_attention"] * 2),
}


def compiles() -> bool:
    """Whether `torch.compile` compiles, now."""
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    torch.compile(torch.sin, backend=backend)(torch.ones(3))
    return bool(compiled)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("score", STRATEGIES)
def test_a_model_that_nobody_holds_is_freed(score: str, used: bool) -> None:
    functions = len(ALL_ATTENTION_FUNCTIONS)
    model: Any = tiny_model("llava")
    handle = prune(model, STRATEGIES[score])
    if used:
        model.generate(**ragged_inputs("llava"), max_new_tokens=2)
    alive = weakref.ref(model)
    del model, handle
    gc.collect()
    assert alive() is None
    assert compiles()
    assert len(ALL_ATTENTION_FUNCTIONS) == functions


def test_a_strategy_stays_on_without_its_handle() -> None:
    model: Any = tiny_model("llava")
    with torch.no_grad():
        whole = model(**ragged_inputs("llava"), use_cache=False).logits
        prune(model, STRATEGIES["random"])
        gc.collect()
        assert model(**ragged_inputs("llava"), use_cache=False).logits.shape != whole.shape


def test_a_handle_that_took_its_strategy_off_holds_no_model() -> None:
    model: Any = tiny_model("llava")
    handle = prune(model, STRATEGIES["vision"])
    model.generate(**ragged_inputs("llava"), max_new_tokens=2)
    handle.remove()
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert handle.last is not None
    handle.remove()
