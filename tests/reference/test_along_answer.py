"""What is measured along an answer is what happens while it is decoded.

Shape suffixes: B = rows, T = tokens of the answers, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from tests.contract.models import every_family, inputs_of, model_of
from tests.contract.oracle import NEW_TOKENS, generate
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.deploy import pruned
from vflowopt_search.reference.along_answer import decoded
from vflowopt_search.strategy import Importance, Stage, Strategy

FP32 = 5e-5


def strategies(name: str) -> Mapping[str, Strategy]:
    """One with stages at layers 0 and 3, and one that goes by text attention."""
    layer = adapter_for(model_of(name)).vision_layers[-1]
    importance = Importance(vision_layer=layer, context_threshold=1.1)
    stages = (Stage(layer=0, keep_ratio=0.6), Stage(layer=3, keep_ratio=0.5))
    late = (Stage(layer=2, keep_ratio=0.4),)
    return {
        "vision": Strategy(name="vision", importance=importance, stages=stages),
        "text": Strategy(name="text", importance=Importance(score="text_attention"), stages=late),
    }


@every_family
@pytest.mark.parametrize("kind", ["vision", "text"])
def test_a_dictated_answer_is_what_decoding_sees(name: str, kind: str) -> None:
    model, adapter = model_of(name), adapter_for(model_of(name))
    with pruned(model, strategies(name)[kind]):
        steps = generate(model, inputs_of(name))
        _, _, along = decoded(adapter, inputs_of(name), list(steps.ids), layers=False)
        with torch.no_grad():
            logits = model.get_output_embeddings()(along.hidden_PD)
    assert along.lengths == (NEW_TOKENS,) * len(steps.ids)
    torch.testing.assert_close(logits.view_as(steps.logits), steps.logits, rtol=0, atol=FP32)
