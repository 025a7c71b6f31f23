"""Rows of several strategies in one prefill are what each strategy does by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract.models import NAMES, inputs_of, model_of
from tests.pruning.oracle import strategy_of
from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.feeding import encode_visuals, encoder_inputs, feeding
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.deploy import attached_engine, attached_together, pruned
from vflowopt_search.errors import StrategyError, UnsupportedError
from vflowopt_search.pruning.mixed import MixedEngine, MixedPrefill
from vflowopt_search.pruning.vision import VisionRecorder
from vflowopt_search.reference.encoder import encode_vision, kinds_of
from vflowopt_search.reference.prepared import PreparedSet
from vflowopt_search.strategy import Importance, Recycling, Strategy

FP32 = 2e-5
ROWS = range(3)
# windows, blocks seen both ways, chunks, M-RoPE, deepstack, separators, several kinds of images
WANTED = (
    "llava_onevision-image+video",
    "gemma3-window",
    "llama4-chunks",
    "mistral3",
    "qwen2_5_vl-images",
    "qwen3_vl-images+video",
    "internvl-images",
    "molmo2",
)
each = pytest.mark.parametrize("name", [name for name in WANTED if name in NAMES])


def strategies_for(adapter: Adapter) -> list[Strategy]:
    """They differ in stages, layers, scores, recycling, positions and separators."""
    family, (*_, last) = adapter.family, adapter.vision_layers
    seen = Importance(vision_layer=last, context_threshold=1.1)
    first = Importance(vision_layer=adapter.vision_layers[0])
    recycled = Recycling(cell=2.0) if adapter.knows_grid else None
    packed: dict[str, Any] = {"positions": "packed"} if "packed" in family.positions else {}
    strategies = [
        strategy_of((0, 0.5), (2, 0.5), importance=seen, recycling=recycled),
        strategy_of((0, 1.0), importance=seen),
        strategy_of((0, 0.2), importance=first, separators="keep", **packed),
        strategy_of((1, 0.4), (3, 0.5), importance=Importance(score="uniform")),
        strategy_of((0, 0.6), (2, 0.7), (3, 0.3), importance=Importance(score="random", seed=3)),
    ]
    if "text_attention" in family.scores:
        asked = Importance(score="text_attention")
        mixed = strategy_of(
            (0, 0.7), (3, 0.4), importance=seen, scores=[None, "text_attention"], **packed
        )
        strategies += [strategy_of((1, 0.5), (2, 0.5), importance=asked), mixed]
    return strategies


def last_logits(model: Any, inputs: Any) -> Tensor:
    """What stands at the last prompt token."""
    with torch.inference_mode():
        logits: Tensor = model(**inputs, use_cache=False).logits[:, -1]
    return logits


def provide(engine: MixedEngine, number: int, inputs: Any) -> None:
    """Give a strategy's scoring the signals of the whole batch."""
    scoring, adapter = engine.scoring.parts[number], adapter_for(engine.anatomy.model)
    recorder = scoring.recorder
    for kind in kinds_of(adapter, inputs):
        seen = VisionRecorder(adapter, layer=recorder.layer, pixels=recorder.pixels)
        with torch.inference_mode(), seen.recording():
            encode_visuals(adapter, encoder_inputs(adapter, inputs, kind), kind)
        [signals] = seen.calls.values()
        scoring.provide(signals, kind)


def together(
    name: str, strategies: Sequence[Strategy], order: Sequence[int]
) -> tuple[list[Tensor], list[list[list[int]]]]:
    """Logits and tokens alive per layer of each strategy's rows, all in one batch."""
    model, inputs = model_of(name), inputs_of(name)
    adapter = adapter_for(model)
    samples = PreparedSet(adapter, encode_vision(adapter, inputs, None), pad_token_id=0)
    begun: list[MixedPrefill] = []
    with attached_together(model, strategies) as engine:
        for number in order:
            provide(engine, number, inputs)
        engine.assign([number for number in order for _ in ROWS])
        start: Any = engine.prefill

        def watched(*given: Any) -> MixedPrefill:
            begun.append(start(*given))
            return begun[-1]

        patch: Any = engine
        patch.prefill = watched
        with feeding(adapter, samples.inputs([i for _ in order for i in ROWS])) as fed:
            logits = last_logits(model, fed)
        layers = len(adapter.decoder_layers)
        alive = [share.prefill.record(layers).tokens_per_layer for share in begun[0].shares]
    return list(torch.split(logits, len(ROWS))), alive


@each
def test_rows_of_many_strategies_are_as_by_themselves(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    strategies = strategies_for(adapter_for(model))
    order = [4, 1, 0, 3, 2, *range(5, len(strategies))]
    logits, alive = together(name, strategies, order)
    plain = last_logits(model, inputs)
    distances = []
    for number, found, layers in zip(order, logits, alive, strict=True):
        with pruned(model, strategies[number]) as applied:
            expected = last_logits(model, inputs)
        assert applied.last is not None
        assert layers == applied.last.tokens_per_layer
        torch.testing.assert_close(found, expected, rtol=0, atol=FP32)
        distances.append(float((found - plain).abs().max()))
    assert distances[1] < FP32  # keeps everything
    assert min(distances[:1] + distances[2:]) > 50 * FP32


def test_some_of_the_strategies_may_have_no_rows() -> None:
    strategies = strategies_for(adapter_for(model_of("llava")))
    whole, _ = together("llava", strategies, [0, 1, 2, 3])
    part, _ = together("llava", strategies, [3, 0])
    torch.testing.assert_close(part, [whole[3], whole[0]], rtol=0, atol=FP32)


def test_a_mixed_batch_is_not_generated_from() -> None:
    model, inputs = model_of("llava"), inputs_of("llava")
    halves = [strategy_of((0, 0.5), importance=Importance(score="uniform"))] * 2
    text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    with attached_together(model, halves) as engine:
        with pytest.raises(UnsupportedError, match=r"for measuring only.*pass use_cache=False"):
            model.generate(**text, max_new_tokens=2)
        engine.assign([0, 0, 0])
        provide(engine, 0, inputs)
        with pytest.raises(UnsupportedError, match=r"for measuring only.*pass use_cache=False"):
            model(**inputs)
        engine.assign([0, 1])
        with pytest.raises(UnsupportedError, match="has 3 rows but 2 were assigned"):
            model(**inputs, use_cache=False)
    with torch.no_grad():  # and nothing stays behind
        model.generate(**inputs, max_new_tokens=2)


def test_every_strategy_of_a_batch_is_checked_first() -> None:
    model = model_of("llava")
    good = strategy_of((0, 0.5))
    wrong = strategy_of((0, 0.5), importance=Importance(vision_layer=77))
    with (
        pytest.raises(StrategyError, match="vision_layer is 77 but the model has 4"),
        attached_together(model, [good, wrong]),
    ):
        pass
    with attached_engine(model, good), pytest.raises(UnsupportedError, match="pruned already"):
        attached_together(model, [good]).__enter__()
