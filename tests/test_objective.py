"""What the search measures is what deployment does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pruning.oracle import strategy_of
from tests.small_set import small_set
from tests.tiny import FAMILIES, tiny_model, tiny_processor
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.deploy import pruned
from vflowopt_search.divergence import ANSWER_METRICS, METRICS
from vflowopt_search.errors import CacheError, DivergenceError, ModelError, UnsupportedError
from vflowopt_search.evaluate.answers import Asking
from vflowopt_search.evaluate.evaluation import evaluate
from vflowopt_search.importance.context import ContextMap, ContextProjections
from vflowopt_search.objective import Objective, build_objective
from vflowopt_search.reference import stored_attention
from vflowopt_search.reference.shelf import GB, MemoryShelf
from vflowopt_search.strategy import Importance, Recycling, Strategy

every_family = pytest.mark.parametrize("family", FAMILIES)
every_metric = pytest.mark.parametrize("metric", sorted([*METRICS, *ANSWER_METRICS]))
EVERYONE = list(range(7))


def objective_of(family: str, metric: str = "last_token_cosine", **options: Any) -> Objective:
    return build_objective(
        tiny_model(family), tiny_processor(family), small_set(), metric=metric, **options
    )


def full_strategy(objective: Objective, **changed: Any) -> Strategy:
    importance = Importance(
        vision_layer=1,
        context_threshold=1.2,
        entropy_weight=0.5,
        pixels=objective.facts.pixels,
    )
    return strategy_of(
        (0, 0.5), (3, 0.5), importance=importance, recycling=Recycling(cell=2.0), **changed
    )


@every_family
def test_a_trial_measures_what_a_deployed_model_does(family: str) -> None:
    """Total variation from cached features and maps = that of two live models on pixels."""
    objective = objective_of(family, "total_variation", batch_size=3)
    strategy = full_strategy(objective)
    model, inputs = tiny_model(family), encode(tiny_processor(family), small_set().samples)
    with torch.no_grad():
        plain_BV = model(**inputs, logits_to_keep=1).logits[:, -1].softmax(-1)
        with pruned(model, strategy):
            pruned_BV = model(**inputs, logits_to_keep=1).logits[:, -1].softmax(-1)
    live_B = (plain_BV - pruned_BV).abs().sum(-1) / 2
    measured_B = torch.tensor(objective.measure(strategy, EVERYONE))
    assert live_B.max() > 0.05
    torch.testing.assert_close(measured_B, live_B, rtol=1e-4, atol=1e-5)


@every_family
@every_metric
def test_keeping_everything_diverges_by_nothing(family: str, metric: str) -> None:
    objective = objective_of(family, metric)
    assert max(objective.measure(strategy_of((0, 1.0), (3, 1.0)), EVERYONE)) < 1e-6
    assert min(objective.measure(full_strategy(objective), EVERYONE)) > 1e-4


@every_family
def test_batches_and_their_order_change_nothing(family: str) -> None:
    one_by_one = objective_of(family, batch_size=1)
    together = objective_of(family, batch_size=5)
    strategy = full_strategy(together)
    expected = one_by_one.measure(strategy, EVERYONE)
    assert together.measure(strategy, EVERYONE) == pytest.approx(expected, abs=1e-5)
    assert together.measure(strategy, [5, 2, 6]) == pytest.approx(
        [expected[i] for i in (5, 2, 6)], abs=1e-5
    )


def test_maps_beyond_the_bound_are_computed_again_and_equal() -> None:
    roomy = objective_of("llava_onevision")
    three_samples = 3 * 5 * 16 * 17 * 4 / GB  # the maps of one layer
    tight = objective_of("llava_onevision", cache_gb=three_samples)
    strategy = full_strategy(roomy)
    expected = roomy.measure(strategy, EVERYONE)
    for _ in range(2):
        assert tight.measure(strategy, EVERYONE) == pytest.approx(expected, abs=1e-7)
    few, many = tight.source.maps.shelf, roomy.source.maps.shelf
    assert isinstance(few, MemoryShelf)
    assert isinstance(many, MemoryShelf)
    assert 0 < few.held_bytes <= few.limit_bytes < many.held_bytes


@every_family
def test_trials_measure_the_same_from_either_form_of_stored_attention(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {}
    for as_map in (True, False):
        monkeypatch.setattr(stored_attention, "takes_less_as_map", lambda _, chosen=as_map: chosen)
        for turn in range(2):
            objective = objective_of(family, cache=tmp_path / str(as_map))
            values[as_map, turn] = objective.measure(full_strategy(objective), EVERYONE)
        form = ContextMap if as_map else ContextProjections
        parts = objective.source.maps.attention(1, EVERYONE)["image"][0].parts
        assert all(isinstance(part, form) for part in parts)
    for found in values.values():
        assert found == pytest.approx(values[True, 0], abs=1e-6)


def test_processes_and_runs_share_maps_and_features(tmp_path: Path) -> None:
    """A second objective on the same cache, even of other questions, encodes nothing."""
    first = objective_of("llava_onevision", cache=tmp_path)
    expected = first.measure(full_strategy(first), EVERYONE)
    assert first.measure(full_strategy(first), EVERYONE) == expected
    fresh = objective_of("llava_onevision", cache=tmp_path)
    with encoder_calls(fresh) as calls:
        assert fresh.measure(full_strategy(fresh), EVERYONE) == expected
    assert calls == []
    assert fresh.reference.from_cache
    again = replace(small_set(), samples=small_set().samples[::-1], sha256="reversed")
    other = build_objective(
        tiny_model("llava_onevision"), tiny_processor("llava_onevision"), again, cache=tmp_path
    )
    with encoder_calls(other) as calls:
        assert other.measure(full_strategy(other), EVERYONE) == pytest.approx(
            expected[::-1], abs=1e-6
        )
    assert calls == []


def test_a_cache_that_is_too_small_says_how_much_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"take 0.0 GB, but the cache may hold 1e-06; allow more"):
        objective_of("llava", cache=tmp_path, cache_gb=1e-6)
    with pytest.raises(CacheError, match="may hold 0 GB, but must hold some"):
        objective_of("llava", cache=tmp_path, cache_gb=0)


@contextmanager
def encoder_calls(objective: Objective) -> Iterator[list[int]]:
    """Runs of the vision tower inside the block."""
    runs: list[int] = []
    hook = objective.adapter.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    yield runs
    hook.remove()


def test_the_vision_encoder_runs_once_for_all_trials() -> None:
    objective = objective_of("llava_onevision")
    with encoder_calls(objective) as calls:
        objective.measure(full_strategy(objective), EVERYONE)
        first = len(calls)
        for layer in range(4):
            importance = Importance(vision_layer=layer)
            objective.measure(strategy_of((0, 0.3), importance=importance), EVERYONE)
    assert first == len(calls) == 1


@every_family
@pytest.mark.parametrize(
    ("metric", "head"),
    [("last_token_cosine", []), ("flow", []), ("kl", [1]), ("total_variation", [1])],
)
def test_a_trial_keeps_no_cache_and_asks_the_head_for_no_more_than_its_metric_reads(
    family: str, metric: str, head: list[int]
) -> None:
    objective = objective_of(family, metric, batch_size=7)
    head_tokens: list[int] = []
    caches: list[Any] = []

    def watch_head(module: Any, args: Any, output: torch.Tensor) -> None:
        head_tokens.append(output.shape[1])

    def watch_decoder(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        caches.extend([kwargs.get("past_key_values"), output.past_key_values])

    model: Any = objective.adapter.model
    hooks = [
        model.lm_head.register_forward_hook(watch_head),
        objective.adapter.backbone.register_forward_hook(watch_decoder, with_kwargs=True),
    ]
    objective.measure(full_strategy(objective), EVERYONE)
    for hook in hooks:
        hook.remove()
    assert head_tokens == head
    assert caches == [None, None]


def test_a_number_that_is_not_finite_is_refused() -> None:
    objective = objective_of("llava")
    final_norm = objective.adapter.backbone.norm
    hook = final_norm.register_forward_hook(lambda m, a, out: out * float("nan"))
    with pytest.raises(DivergenceError, match="not finite for 7 of 7 samples"):
        objective.measure(strategy_of((0, 0.5)), EVERYONE)
    hook.remove()
    assert len(objective.measure(strategy_of((0, 0.5)), EVERYONE)) == 7


def test_facts_for_the_search_space() -> None:
    facts = objective_of("llava_onevision", name="a-model").facts
    assert facts.identity.name == "a-model"
    assert facts.identity.decoder_layers == 6
    assert facts.vision_layers_available == (0, 1, 2, 3)
    assert facts.has_separators
    assert facts.pixels is not None
    assert not objective_of("llava").facts.has_separators


def test_fine_tuned_weights_have_another_fingerprint() -> None:
    model, processor = tiny_model("llava"), tiny_processor("llava")
    before = build_objective(model, processor, small_set()).fingerprint
    assert before == build_objective(model, processor, small_set()).fingerprint
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 0.01
    after = build_objective(model, processor, small_set()).fingerprint
    assert {name for name in before if before[name] != after[name]} == {"weights_sha256"}


def test_a_pruned_model_is_no_reference(tmp_path: Path) -> None:
    model, processor = tiny_model("llava"), tiny_processor("llava")
    with pruned(model, strategy_of((0, 0.5))):
        with pytest.raises(UnsupportedError, match="pruned already; leave the"):
            build_objective(model, processor, small_set(), cache=tmp_path)
        with pytest.raises(UnsupportedError, match="pruned already; leave the"):
            evaluate(Asking(model, processor), small_set().samples, {})
    assert list(tmp_path.rglob("*")) == []


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    objective = objective_of("llava", batch_size=7)
    strategy = full_strategy(objective)
    expected = objective.measure(strategy, EVERYONE)
    sizes: list[int] = []

    def small_gpu(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        sizes.append(len(kwargs["inputs_embeds"]))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("no room")

    hook = objective.adapter.backbone.register_forward_pre_hook(small_gpu, with_kwargs=True)
    limit = 2
    assert objective.measure(strategy, EVERYONE) == pytest.approx(expected, abs=1e-5)
    assert sizes == [7, 4, 2, 2, 2, 1]  # and it is remembered what fits
    limit, objective.room.most = 0, None
    with pytest.raises(ModelError, match=r"one sample .number 0. does not fit in memory"):
        objective.measure(strategy, EVERYONE)
    hook.remove()
