"""A divergence is measured once, for the very strategy, sample and model that it is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.small_set import small_set
from tests.tiny import tiny_model, tiny_processor
from vflowopt_search.baselines import baseline_strategies
from vflowopt_search.evaluate.kept import KeptObjective
from vflowopt_search.evaluate.ledger import Ledger
from vflowopt_search.objective import Objective, build_objective
from vflowopt_search.strategy import Strategy


@pytest.fixture(scope="module")
def objective() -> Objective:
    return build_objective(tiny_model("llava"), tiny_processor("llava"), small_set())


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The samples that were really measured."""
    seen: list[int] = []
    measure = Objective.measure

    def noted(self: Objective, strategy: Strategy, indices: Sequence[int]) -> Any:
        seen.extend(indices)
        return measure(self, strategy, indices)

    monkeypatch.setattr(Objective, "measure", noted)
    return seen


def test_what_is_known_is_not_measured(
    objective: Objective, measured: list[int], tmp_path: Path
) -> None:
    uniform = baseline_strategies(objective.facts, 0.3)["uniform"]
    samples, path = small_set().samples, tmp_path / "kept.jsonl"
    kept = KeptObjective(objective, samples, Ledger(path))
    first = kept.measure(uniform, range(4))
    again = KeptObjective(objective, samples, Ledger(path))
    assert again.measure(uniform.model_copy(update={"name": "other"}), range(4)) == first
    assert measured == [0, 1, 2, 3]
    assert again.measure(uniform, range(4, 7)) == objective.measure(uniform, range(4, 7))
    assert (kept.num_samples, kept.metric) == (7, "last_token_cosine")


def test_a_batch_that_a_kill_cut_is_measured_whole(
    objective: Objective, measured: list[int], tmp_path: Path
) -> None:
    uniform = baseline_strategies(objective.facts, 0.3)["uniform"]
    samples, path = small_set().samples, tmp_path / "kept.jsonl"
    whole = KeptObjective(objective, samples, Ledger(path)).measure(uniform, range(5))
    path.write_bytes(path.read_bytes()[:-7])
    assert KeptObjective(objective, samples, Ledger(path)).measure(uniform, range(5)) == whole
    assert measured == [*range(5), *range(5)]


def test_another_strategy_sample_metric_or_model_is_measured(
    objective: Objective, measured: list[int], tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "kept.jsonl")
    plain = baseline_strategies(objective.facts, 0.3)
    samples = small_set().samples
    KeptObjective(objective, samples, ledger).measure(plain["uniform"], [0])
    KeptObjective(objective, samples, ledger).measure(plain["attention"], [0])
    assert measured == [0, 0]
    model, processor, others = tiny_model("llava"), tiny_processor("llava"), small_set(seed=5)
    build = build_objective
    for number, (other, theirs) in enumerate(
        [
            (build(model, processor, others), others.samples),
            (build(model, processor, small_set(), metric="kl"), samples),
            (build(changed(), processor, small_set()), samples),
        ],
        start=3,
    ):
        KeptObjective(other, theirs, ledger).measure(plain["uniform"], [0])
        assert len(measured) == number


def changed() -> Any:
    model = tiny_model("llava")
    with torch.no_grad():
        next(iter(model.parameters())).flatten()[0] += 1.0
    return model
