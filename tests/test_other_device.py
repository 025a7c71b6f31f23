"""On a device that is not the CPU: nothing is left behind, and the values are the CPU's."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from tests.accelerator import DEVICE, Held, accelerator, on_accelerator
from tests.contract.models import NAMES
from tests.fake_study import SPACE
from tests.families import tiny
from tests.small_set import small_set
from vflowopt_search import objective as objective_module
from vflowopt_search.objective import Objective, build_objective
from vflowopt_search.reference import along_answer, stored_attention
from vflowopt_search.reference.placement import moved
from vflowopt_search.reference.prepared import PreparedSet
from vflowopt_search.strategy import Strategy

SIZE = 3
CASES = [
    ("llava", "answer_cosine", "host", "map"),
    ("llava_onevision", "flow", "host", "projections"),
    ("llava_onevision", "total_variation", "device", "map"),
    ("qwen2_5_vl", "total_variation", "host", "map"),
    ("gemma3", "total_variation", "device", "projections"),
]


@cache
def model_of(name: str) -> Any:
    return tiny(name).model(attn="eager")


def objective_on(model: Any, name: str, metric: str, cache: Path | None = None) -> Objective:
    processor = tiny(name).processor
    assert processor is not None
    return build_objective(
        model, processor(), small_set(SIZE), metric=metric, batch_size=2, cache=cache
    )


def drawn(objective: Objective) -> list[Strategy]:
    """Strategies with entropy, recycling and every score, at the first stage and at later ones."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    bound = SPACE.bind(objective.facts)
    scores = [None, "uniform", "random", "text_attention"]
    strategies = []
    for number in range(2):
        strategy = bound.suggest(study.ask(), 0.3)
        stages = tuple(
            stage.model_copy(update={"score": scores[(number + k) % 4]}) if stage.layer else stage
            for k, stage in enumerate(strategy.stages)
        )
        strategies.append(strategy.model_copy(update={"stages": stages}))
    assert any(one.importance.entropy_weight and not one.stages[0].score for one in strategies)
    return strategies


def waiting_there(prepared: PreparedSet) -> PreparedSet:
    """`settled` where everything fits on the accelerator."""
    return moved(prepared, lambda tensor: tensor.to(DEVICE))


@pytest.mark.parametrize(
    ("name", "metric", "place", "form"), [case for case in CASES if case[0] in NAMES]
)
def test_a_search_measures_there_what_it_measures_on_the_cpu(
    name: str,
    metric: str,
    place: str,
    form: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(along_answer, "ANSWER_TOKENS", 2)
    monkeypatch.setattr(stored_attention, "takes_less_as_map", lambda _: form == "map")
    model = model_of(name)
    here = objective_on(model, name, metric, tmp_path)  # which serves no other device
    strategies = drawn(here)
    expected = here.measure_many(strategies, range(SIZE))
    if place == "device":
        monkeypatch.setattr(objective_module, "settled", waiting_there)
    there = on_accelerator(model)
    with monkeypatch.context() as patch, accelerator(patch):
        for warm in (False, True):
            objective = objective_on(there, name, metric, tmp_path)
            assert objective.reference.from_cache == warm
            found = objective.measure_many(strategies, range(SIZE))
            for values, wanted in zip(found, expected, strict=True):
                assert values == pytest.approx(wanted, abs=1e-5)


def test_the_pretended_device_computes_and_refuses_as_a_real_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch, accelerator(patch):
        here, there = torch.arange(3.0), torch.arange(3.0, device=DEVICE)
        made = torch.tensor([1.0, 2.0, 3.0], device=DEVICE)
        assert isinstance(there, Held) and isinstance(made, Held)
        assert (there + made).tolist() == [1.0, 3.0, 5.0]
        assert not isinstance((there + made).cpu(), Held)
        assert isinstance(here.to(DEVICE) * 2.0, Held)
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            _ = here + there
        with pytest.raises(TypeError, match="bring them to the CPU"):
            there.numpy()
