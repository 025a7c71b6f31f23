"""Running the last layer for the last token only changes nothing that is read of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from tests.contract.models import every_family, inputs_of, model_of
from tests.pruning.oracle import strategy_of
from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.deploy import pruned
from vflowopt_search.pruning.last_token import last_token_only, token_by_token

STAGES = ((0, 0.6), (1, 0.5))


@contextmanager
def tokens_seen(adapter: Adapter) -> Iterator[list[int]]:
    """Tokens per row that the parts of the last layer work on."""
    seen: list[int] = []

    def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].shape[-2])

    hooks = [m.register_forward_pre_hook(watch) for m in token_by_token(adapter)]
    yield seen
    for hook in hooks:
        hook.remove()


@every_family
@pytest.mark.parametrize("stages", [(), STAGES], ids=["unpruned", "pruned"])
def test_the_last_token_is_the_same(name: str, stages: tuple[tuple[int, float], ...]) -> None:
    model, inputs = model_of(name), dict(inputs_of(name))
    adapter = adapter_for(model)
    scores = ["random" if "random" in adapter.family.scores else "text_attention"] * len(stages)
    strategy = strategy_of(*(stages or ((0, 1.0),)), scores=scores or ["random"])
    with torch.no_grad(), pruned(model, strategy):
        whole_BV = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
        with last_token_only(adapter), tokens_seen(adapter) as seen:
            short_BV = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
        again_BV = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
    torch.testing.assert_close(short_BV, whole_BV, rtol=1e-5, atol=5e-6)
    assert torch.equal(again_BV, whole_BV)
    assert len(seen) == (0 if adapter.last_layer_whole else 2)
    assert set(seen) <= {1}
