"""What does not fit in memory is halved, also while the reference is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.pruning.oracle import strategy_of
from tests.small_set import small_set
from tests.tiny import tiny_model, tiny_processor
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.errors import ModelError, OutOfMemoryError
from vflowopt_search.evaluate.ledger import Ledger
from vflowopt_search.evaluate.validation import MODEL_METRIC, _measured
from vflowopt_search.objective import Objective, build_objective
from vflowopt_search.reference.halving import Room, in_halves
from vflowopt_search.strategy import Importance

EVERYONE = range(7)


@given(
    count=st.integers(0, 40),
    asked=st.integers(1, 20),
    fits=st.integers(1, 20),
    before=st.none() | st.integers(1, 20),
)
def test_everything_is_computed_once_in_order_and_what_did_not_fit_is_not_tried_again(
    count: int, asked: int, fits: int, before: int | None
) -> None:
    tried: list[int] = []

    def compute(batch: Sequence[int]) -> list[int]:
        tried.append(len(batch))
        if len(batch) > fits:
            raise torch.OutOfMemoryError("no room")
        return [10 * item for item in batch]

    room = Room()
    room.most = before
    results = list(in_halves(range(count), asked, compute, room))
    assert [item for batch, _ in results for item in batch] == list(range(count))
    assert all(found == [10 * item for item in batch] for batch, found in results)
    failed = [size for size in tried if size > fits]
    assert len(set(failed)) == len(failed)
    assert max(tried, default=0) <= min(asked, before or asked)
    if failed:
        assert room.most == (min(failed) + 1) // 2


def test_a_row_that_does_not_fit_is_named_where_its_number_means_something() -> None:
    def never(batch: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(ModelError, match=r"^one sample .number 4. does not fit in memory; use a"):
        list(in_halves([4, 5], 2, never, Room(), number=int))
    with pytest.raises(ModelError, match=r"^one sample does not fit in memory; use a smaller"):
        list(in_halves([4, 5], 2, never, Room()))


@contextmanager
def memory_for(module: nn.Module, most_rows: int) -> Iterator[list[int]]:
    """A module that is out of memory above some rows; yields the sizes of the batches tried."""
    sizes: list[int] = []

    def small_gpu(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = next(one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor))
        sizes.append(len(kwargs.get("inputs_embeds", given)))
        if sizes[-1] > most_rows:
            raise torch.OutOfMemoryError("no room")

    hook = module.register_forward_pre_hook(small_gpu, with_kwargs=True)
    try:
        yield sizes
    finally:
        hook.remove()


def objective_of(model: Any, metric: str) -> Objective:
    return build_objective(model, tiny_processor("llava"), small_set(), metric=metric)


@pytest.mark.parametrize("part", ["decoder", "vision tower"])
@pytest.mark.parametrize("metric", ["flow", "answer_cosine"])
def test_the_reference_is_the_same_whatever_fits(part: str, metric: str) -> None:
    roomy = objective_of(tiny_model("llava"), metric)
    model = tiny_model("llava")
    adapter = adapter_for(model)
    module = adapter.backbone if part == "decoder" else adapter.vision_tower
    with memory_for(module, 2) as sizes:
        tight = objective_of(model, metric)
    assert {7, 4, 2} <= set(sizes)
    for one, other in zip(
        roomy.reference.prepared.samples, tight.reference.prepared.samples, strict=True
    ):
        torch.testing.assert_close(one.features[0], other.features[0])
    torch.testing.assert_close(
        roomy.reference.readout.hidden_BLD,
        tight.reference.readout.hidden_BLD,
        rtol=0,
        atol=1e-5,
    )
    if roomy.answers is not None and tight.answers is not None:
        for said, again in zip(roomy.answers.answers, tight.answers.answers, strict=True):
            assert torch.equal(said, again)


def test_a_sample_that_does_not_fit_ends_the_reference_with_a_sentence() -> None:
    model = tiny_model("llava")
    for module in (adapter_for(model).backbone, adapter_for(model).vision_tower):
        objective_of(model, "flow")  # its self-check has been passed
        with (
            memory_for(module, 0),
            pytest.raises(ModelError, match=r"one sample .number 0. does not fit in memory"),
        ):
            objective_of(model, "flow")


def test_maps_that_do_not_fit_together_leave_the_trials_their_batches() -> None:
    objective = objective_of(tiny_model("llava"), "last_token_cosine")
    strategy = strategy_of((0, 0.5), importance=Importance(vision_layer=1))
    expected = objective_of(tiny_model("llava"), "last_token_cosine").measure(strategy, EVERYONE)
    with memory_for(objective.adapter.vision_tower, 2) as sizes:
        found = objective.measure(strategy, EVERYONE)
    assert sizes == [7, 4, 2, 2, 2, 1]
    assert found == pytest.approx(expected, abs=1e-5)
    assert objective.room.most is None


def test_a_sample_whose_maps_do_not_fit_is_named() -> None:
    objective = objective_of(tiny_model("llava"), "last_token_cosine")
    strategy = strategy_of((0, 0.5), importance=Importance(vision_layer=1))
    with (
        memory_for(objective.adapter.vision_tower, 0),
        pytest.raises(OutOfMemoryError, match=r"^one sample .number 3. does not fit in memory"),
    ):
        objective.measure(strategy, [5, 3])


def test_a_validation_measures_the_same_whatever_fits() -> None:
    objective = objective_of(tiny_model("llava"), MODEL_METRIC)
    samples, strategy = small_set().samples, strategy_of((0, 0.5))
    expected = _measured(objective, samples, strategy, Ledger(), None)
    ledger, told = Ledger(), list[tuple[int, int]]()
    with memory_for(objective.adapter.backbone, 2) as sizes:
        found = _measured(objective, samples, strategy, ledger, lambda *done: told.append(done))
    assert sizes[:2] == [7, 4] and max(sizes[2:]) == 2 and objective.room.most == 2
    assert found == [pytest.approx(row, abs=1e-5) for row in expected]
    assert told == [(2, 7), (4, 7), (6, 7), (7, 7)]
    assert _measured(objective, samples, strategy, ledger, None) == found
    with (
        memory_for(objective.adapter.backbone, 0),
        pytest.raises(OutOfMemoryError, match=r"^one sample .number 0. does not fit in memory"),
    ):
        _measured(objective, samples, strategy, Ledger(), None)
