"""Several strategies measured together are what each is by itself, whatever fits in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.subjects import SUBJECTS
from tests.contract.models import NAMES, model_of
from tests.fake_study import SPACE
from tests.families import tiny
from tests.small_set import small_set
from vflowopt_search.errors import DivergenceError, ModelError
from vflowopt_search.objective import Objective, build_objective
from vflowopt_search.reference.halving import Room
from vflowopt_search.reference.prepared import _moved
from vflowopt_search.strategy import Strategy

SAME = 1e-5
SIZE = 6
FAMILIES = ("llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3")
METRIC = {"llava": "kl", "internvl": "last_token_cosine", "qwen3_vl": "total_variation"}
each = pytest.mark.parametrize("name", [name for name in FAMILIES if name in NAMES])


@cache
def objective_of(name: str) -> Objective:
    """On a tiny model, every layer read."""
    processor = tiny(name).processor
    assert processor is not None
    return build_objective(
        model_of(name), processor(), small_set(SIZE), metric=METRIC.get(name, "flow"), batch_size=3
    )


def drawn(objective: Objective, seeds: Sequence[int], retain: float) -> list[Strategy]:
    """Strategies that differ in all that a space searches, and in the scores of later stages."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=sum(seeds)))
    bound = SPACE.bind(objective.facts)
    strategies = []
    for seed in seeds:
        strategy = bound.suggest(study.ask(), retain)
        scores = [None, "uniform", "random", "text_attention"]
        stages = tuple(
            stage.model_copy(update={"score": scores[(seed + k) % 4]}) if stage.layer else stage
            for k, stage in enumerate(strategy.stages)
        )
        strategies.append(strategy.model_copy(update={"stages": stages}))
    return strategies


def assert_together_is_one_by_one(
    objective: Objective, strategies: Sequence[Strategy], indices: Sequence[int]
) -> None:
    found = objective.measure_many(strategies, indices)
    assert len(found) == len(strategies)
    for values, strategy in zip(found, strategies, strict=True):
        alone = [objective.measure(strategy, [i])[0] for i in indices]
        assert values == pytest.approx(alone, abs=SAME)


@each
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    seeds=st.lists(st.integers(0, 999), min_size=2, max_size=4),
    indices=st.permutations(range(SIZE)).flatmap(lambda p: st.integers(1, 4).map(lambda n: p[:n])),
    retain=st.sampled_from([0.15, 0.4, 0.8]),
)
def test_together_is_one_by_one(
    name: str, seeds: list[int], indices: list[int], retain: float
) -> None:
    objective = objective_of(name)
    assert_together_is_one_by_one(objective, drawn(objective, seeds, retain), indices)


def test_together_is_one_by_one_on_the_shipped_model() -> None:
    subject = SUBJECTS["testbed"](4)
    objective = build_objective(subject.model, subject.processor, subject.samples)
    strategies = drawn(objective, [2, 4, 5, 7], 0.1)
    values = objective.measure_many(strategies, range(4))
    assert len({round(value, 4) for row in values for value in row}) > 8
    assert_together_is_one_by_one(objective, strategies, [2, 0, 3, 1])


@contextmanager
def memory_for(objective: Objective, most_rows: int) -> Iterator[list[int]]:
    """A model that is out of memory above some rows; yields the sizes of the batches tried."""
    sizes: list[int] = []

    def small_gpu(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        sizes.append(len(hidden))
        if sizes[-1] > most_rows:
            raise torch.OutOfMemoryError("no room")

    layer = objective.adapter.decoder_layers[2]
    hook = layer.register_forward_pre_hook(small_gpu, with_kwargs=True)
    try:
        yield sizes
    finally:
        hook.remove()


@pytest.mark.parametrize("most_rows", [1, 2, 5])
def test_what_did_not_fit_is_halved_and_remembered(most_rows: int) -> None:
    objective = replace(objective_of("llava_onevision"), room=Room())
    strategies = drawn(objective, [1, 2, 3], 0.3)
    expected = objective.measure_many(strategies, range(SIZE))
    with memory_for(objective, most_rows) as sizes:
        found = objective.measure_many(strategies, range(SIZE))
        tried = list(sizes)
        sizes.clear()
        assert objective.measure_many(strategies, range(SIZE)) == found
        assert max(sizes) <= most_rows
        sizes.clear()
        objective.measure(strategies[0], range(SIZE))
        assert max(sizes) <= most_rows
    for values, wanted in zip(found, expected, strict=True):
        assert values == pytest.approx(wanted, abs=SAME)
    assert (
        tried[: 5 - most_rows // 2]
        == {1: [9, 5, 3, 2, 1], 2: [9, 5, 3, 2], 5: [9, 5, 5]}[most_rows]
    )
    assert sum(size for size in tried if size <= most_rows) == 3 * SIZE


def test_a_row_that_does_not_fit_by_itself_is_named() -> None:
    objective = replace(objective_of("llava"), room=Room())
    strategies = drawn(objective, [1, 2], 0.3)
    with (
        memory_for(objective, 0),
        pytest.raises(ModelError, match=r"one sample .number 4. does not fit in memory"),
    ):
        objective.measure_many(strategies, [4, 4])


def test_prompts_of_like_length_share_a_batch() -> None:
    objective = replace(objective_of("llava"), batch_size=2)
    lengths = [len(sample.input_ids) for sample in objective.reference.prepared.samples]
    assert len(set(lengths)) > 2
    seen: list[list[int]] = []

    def watch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["attention_mask"].sum(1).tolist())

    hook = objective.adapter.base.register_forward_pre_hook(watch, with_kwargs=True)
    values = objective.measure(drawn(objective, [1], 0.5)[0], range(SIZE))
    hook.remove()
    assert [length for batch in seen for length in batch] == sorted(lengths)
    # the values come back in the order asked
    again = objective.measure(drawn(objective, [1], 0.5)[0], list(reversed(range(SIZE))))
    assert again == pytest.approx(values[::-1], abs=SAME)


def test_a_divergence_that_is_not_finite_is_refused() -> None:
    objective = objective_of("llava")
    final_norm = objective.adapter.backbone.norm
    hook = final_norm.register_forward_hook(lambda m, a, out: out * float("nan"))
    with pytest.raises(DivergenceError, match="not finite for 4 of 4 samples"):
        objective.measure_many(drawn(objective, [1, 2], 0.5), [0, 1])
    hook.remove()


def test_strategies_share_maps_and_features() -> None:
    objective = objective_of("llava_onevision")
    strategies = [drawn(objective, [4], 0.3)[0]] * 3
    objective.measure_many(strategies, [0, 1])
    asked: list[Any] = []
    maps = objective.source.maps
    original = maps.attention
    maps.attention = lambda *given: asked.append(given) or original(*given)  # type: ignore[method-assign,func-returns-value]
    objective.measure_many(strategies, [0, 1])
    maps.attention = original  # type: ignore[method-assign]
    assert len(asked) == 1
    one, other = torch.zeros(2), torch.zeros(2)
    first, second, again = _moved([one, other, one], torch.device("meta"))
    assert first is again and first is not second
