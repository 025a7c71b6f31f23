from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vflowopt_search.testbed.batches import IGNORED, make_batch
from vflowopt_search.testbed.curriculum import RECIPE, Curriculum, make_curriculum
from vflowopt_search.testbed.losses import answer_logits, tower_output
from vflowopt_search.testbed.model import make_model
from vflowopt_search.testbed.muon import orthogonalised
from vflowopt_search.testbed.train import Learner, train, train_step


def micro(*steps: int) -> Curriculum:
    """So many steps of each phase, or one, with two images a step."""
    curriculum = make_curriculum(steps or (1,) * len(RECIPE), seed=4)
    return Curriculum(
        tuple(replace(p, batch_size=2, questions_per_image=3) for p in curriculum.phases), seed=4
    )


def test_a_step_of_every_phase_has_finite_losses() -> None:
    curriculum = micro()
    learner = Learner.new(curriculum)
    for phase in curriculum.phases:
        learner.step = phase.start
        before = learner.model.model.vision_tower.encoder.layers[0].mlp.fc1.weight.clone()
        losses = train_step(learner, curriculum, phase)
        assert losses.total.isfinite()
        assert losses.dense > 0
        assert (losses.answer > 0) == (phase.kind != "tower")
        assert (before != learner.model.model.vision_tower.encoder.layers[0].mlp.fc1.weight).any()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    curriculum = micro(1, 1, 0, 0, 0, 0, 1)
    whole = train(curriculum, tmp_path / "whole.pt").state_dict()
    cut = Curriculum(curriculum.phases[:-1], curriculum.seed)
    train(cut, tmp_path / "cut.pt")
    resumed = train(curriculum, tmp_path / "cut.pt", resume=True).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    phase = micro().phases[-1]
    first, again, later = (make_batch(phase, 4, step) for step in (2, 2, 3))
    assert torch.equal(first.pixels_BTCHW, again.pixels_BTCHW)
    assert torch.equal(first.ids_BL, again.ids_BL)
    assert not torch.equal(first.pixels_BTCHW, later.pixels_BTCHW)


def test_questions_do_not_see_each_other() -> None:
    """Answers stay as they are when the words of every other question change."""
    model = make_model(seed=1)
    batch = make_batch(micro().phases[-1], 4, 2)
    words = torch.where(batch.block_BL == 1, batch.ids_BL, batch.ids_BL.roll(1, dims=0))
    with torch.no_grad():
        hidden = tower_output(model, batch.pixels_BTCHW)
        logits, _, _ = answer_logits(model, hidden, batch)
        changed, _, _ = answer_logits(model, hidden, replace(batch, ids_BL=words))
    own = (batch.block_BL == 1)[batch.target_BL != IGNORED]
    torch.testing.assert_close(changed[own], logits[own])
    assert not torch.allclose(changed[~own], logits[~own])


@pytest.mark.parametrize("shape", [(2, 6, 6), (1, 4, 9), (3, 9, 4)])
def test_orthogonalised_has_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.4


def test_learning_rate_rises_holds_and_falls() -> None:
    phase = make_curriculum().phases[-1]
    rates = [phase.rate_at(step) for step in range(phase.start, phase.end)]
    assert rates[0] < 0.1
    assert max(rates) == rates[len(rates) // 3] == 1
    assert rates[-1] < 0.01
    assert all(0 < rate <= 1 for rate in rates)
