"""Every family: scores are those of the attention maps that eager attention returns.

Shape suffixes: B = rows, S = sequence (a call's, or all patches of an encoding), N = visual tokens
of a row, Q = tokens of a tile in the vision encoder, P = its patches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract.models import every_family, inputs_of, model_of
from tests.contract.oracle import visual_tokens
from tests.pruning.oracle import strategy_of
from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.deploy import pruned
from vflowopt_search.importance.signals import ImageGeometry
from vflowopt_search.pruning.prefill import Prefill
from vflowopt_search.pruning.vision import VisionRecorder
from vflowopt_search.strategy import Importance

THRESHOLD = 1.2


@dataclass
class Eager:
    """The weights that the eager attention of one module returned, call by call (B, H, S, S)."""

    module: Any
    weights: list[Tensor] = field(default_factory=list)

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Record from now on: models look their eager attention up in their own file."""
        modules = getattr(self.module, "_twins", (self.module,))  # one per tower of video_llava
        home = sys.modules[type(modules[0]).__module__]
        for name in [name for name in dir(home) if name.endswith("eager_attention_forward")]:
            monkeypatch.setattr(home, name, self._watched(getattr(home, name), modules))

    def _watched(self, original: Callable[..., Any], modules: Sequence[Any]) -> Callable[..., Any]:
        def watched(module: Any, *args: Any, **kwargs: Any) -> Any:
            output, weights = original(module, *args, **kwargs)
            if module in modules:
                self.weights.append(weights)
            return output, weights

        return watched

    def take(self) -> Tensor:
        """Head-mean attention among everything that was encoded since the last time, (S, S)."""
        maps = [one for call_BHSS in self.weights for one in call_BHSS.mean(1)]
        self.weights.clear()
        whole: Tensor = torch.block_diag(*maps)  # type: ignore[no-untyped-call]
        return whole


@dataclass
class ByHand:
    """Importance from eager maps by algorithms.md 1.1, with nothing of the engine but geometry."""

    adapter: Adapter
    eager: Eager
    by_kind: dict[str, list[Tensor]] = field(default_factory=dict)

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Learn of every encoding as it ends: what was encoded is not known before."""
        signals = VisionRecorder._signals
        file = VisionRecorder.file
        scored: list[list[Tensor]] = []

        def on_signals(
            recorder: VisionRecorder, images: tuple[ImageGeometry, ...], call: Mapping[str, Any]
        ) -> Any:
            scored.append(self.scores(images, call))
            return signals(recorder, images, call)

        def on_file(recorder: VisionRecorder, kind: str, made: Any) -> None:
            if scored:  # features that were scored when encoded are filed once more for the prompt
                self.by_kind[kind] = scored.pop()
            file(recorder, kind, made)

        monkeypatch.setattr(VisionRecorder, "_signals", on_signals)
        monkeypatch.setattr(VisionRecorder, "file", on_file)

    def scores(self, images: Sequence[ImageGeometry], call: Mapping[str, Any]) -> list[Tensor]:
        """One score per visual token of each image."""
        map_SS = self.eager.take()
        order_S = self.adapter.patch_order(images, call)
        if order_S is not None:
            map_SS = map_SS[order_S][:, order_S]
        first, scores = 0, []
        for image in images:
            tiles = []
            for _ in range(image.num_tiles):
                size = self.adapter.num_prefix_tokens + image.tile_patches
                size += self.adapter.num_suffix_tokens
                tiles.append(self.relevance(map_SS[first : first + size, first : first + size]))
                first += size
            scores.append(image.pack(torch.stack(tiles)))
        assert first == len(map_SS)
        return scores

    def relevance(self, map_QQ: Tensor) -> Tensor:
        """Attention from the patches that attract most; CLS asks where it is asked, never answers.

        Shape (P,).
        """
        torch.testing.assert_close(map_QQ.sum(1), torch.ones(len(map_QQ)))  # nothing outside
        last = len(map_QQ) - self.adapter.num_suffix_tokens
        patches = slice(self.adapter.num_prefix_tokens, last)
        received_P = map_QQ[:, patches].mean(0)
        context_P = received_P > THRESHOLD * received_P.mean()
        assert context_P.any()
        assert not context_P.all()
        relevance_P: Tensor = map_QQ[patches, patches][context_P].mean(0)
        return relevance_P

    def by_row(self, input_ids: Tensor) -> list[Tensor]:
        """The scores at their places in the prompts, one vector (N,) per row."""
        adapter = self.adapter
        tokens = {"image": adapter.image_token_id, "video": adapter.video_token_id}
        score_BS = torch.full(input_ids.shape, torch.nan)
        for kind, scores in self.by_kind.items():
            score_BS[input_ids == tokens[kind]] = torch.cat(scores)
        visual_BS = visual_tokens(adapter, input_ids)
        return [score_S[visual_S] for score_S, visual_S in zip(score_BS, visual_BS, strict=True)]


@every_family
@pytest.mark.parametrize("which", [0, -1])
def test_importance_is_that_of_the_eager_map(
    name: str, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = model_of(name, "eager"), inputs_of(name)
    adapter = adapter_for(model)
    layer = adapter.vision_layers[which]
    by_hand = ByHand(adapter, Eager(adapter.vision_attentions[layer]))
    by_hand.eager.watch(monkeypatch)
    by_hand.watch(monkeypatch)
    importance = Importance(vision_layer=layer, context_threshold=THRESHOLD)
    with torch.no_grad(), pruned(model, strategy_of((0, 0.5), importance=importance)) as applied:
        model(**inputs)
    assert applied.last is not None
    expected = by_hand.by_row(inputs["input_ids"])
    for mine, eager in zip(applied.last.importance, expected, strict=True):
        torch.testing.assert_close(mine, eager, rtol=1e-5, atol=1e-5)


@every_family
def test_text_attention_is_that_of_the_eager_map(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_text_attention(name, 3, monkeypatch)


@pytest.mark.parametrize("name", ["gemma3-window", "llama4-chunks"])
def test_text_attention_keeps_to_windows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = adapter_for(model_of(name)).backbone.config.layer_types
    narrow = next(layer for layer, kind in enumerate(kinds) if kind != "full_attention")
    assert_text_attention(name, narrow + 1, monkeypatch)


@every_family
def test_the_record_tells_the_first_stage_scores(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    told = []
    for stages in ([(2, 0.5)], [(2, 0.5), (4, 0.5)]):
        strategy = strategy_of(*stages, scores=["text_attention"] * len(stages))
        with torch.no_grad(), pruned(model, strategy) as applied:
            model(**inputs)
        assert applied.last is not None
        told.append(applied.last.importance)
    for alone_N, first_N in zip(*told, strict=True):
        assert torch.equal(first_N, alone_N)
        assert first_N.isfinite().all()


def assert_text_attention(name: str, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score at a stage is what the layer before it gives when it attends eagerly."""
    seen: list[Prefill] = []
    later_stage = Prefill.later_stage

    def watched(prefill: Prefill, number: int) -> None:
        seen.append(prefill)
        later_stage(prefill, number)

    monkeypatch.setattr(Prefill, "later_stage", watched)
    model, inputs = model_of(name, "eager"), inputs_of(name)
    adapter = adapter_for(model)
    eager = Eager(adapter.decoder_attention(stage - 1))
    eager.watch(monkeypatch)
    with torch.no_grad(), pruned(model, strategy_of((stage, 0.5), scores=["text_attention"])):
        model(**inputs)
    last_BS = eager.weights[0].mean(1)[:, -1]
    visual_BS = visual_tokens(adapter, inputs["input_ids"])
    for mine, last_S, visual_S in zip(
        seen[0].scores["text_attention"], last_BS, visual_BS, strict=True
    ):
        torch.testing.assert_close(mine, last_S[visual_S], rtol=1e-5, atol=1e-5)
