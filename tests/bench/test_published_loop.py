"""The baseline that we compare with is the published method, and no straw man."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import subjects
from tests.bench.published_loop import STARTS, Proposal, PublishedLoop, places, recycle
from tests.bench.subjects import Subject
from tests.bench.trial_cost import loop_of, same_strategy
from vflowopt_search.budget import mean_retained
from vflowopt_search.objective import build_objective
from vflowopt_search.pruning.vision import VisionRecorder
from vflowopt_search.reference.encoder import encoded_batches

RETAIN = 0.2


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subjects.testbed(4)


@pytest.fixture(scope="module")
def loop(subject: Subject) -> PublishedLoop:
    return loop_of(subject, RETAIN)


def test_keeping_everything_diverges_by_nothing(loop: PublishedLoop) -> None:
    assert loop.divergence(Proposal(1.0, 0.3, 4.0, (1.0, 1.0, 1.0))) == pytest.approx(0, abs=1e-5)


def test_without_recycling_it_is_our_engine(loop: PublishedLoop, subject: Subject) -> None:
    """Only counts and recycling differ from ours: with neither in play, the figures are equal."""
    proposal = Proposal(1.5, 0.4, 4.0, (1.0, 0.5, 0.5))
    theirs = loop.divergence(proposal)
    objective = build_objective(subject.model, subject.processor, subject.samples)
    strategy = same_strategy(loop, proposal, subject)
    ours = objective.measure(strategy.model_copy(update={"recycling": None}), range(4))
    assert theirs > 0.01
    # row ends score 1 there and so stay; so they do in ours, which keeps as many tokens besides
    assert sum(ours) / 4 == pytest.approx(theirs, rel=0.1)


def test_only_where_a_map_is_read_does_the_tower_attend_eagerly(
    loop: PublishedLoop, subject: Subject
) -> None:
    """Eager attention would slow the unpruned model, which is the loop's longest phase."""
    tower, seen = subject.model.model.vision_tower, list[str]()
    hook = tower.register_forward_pre_hook(
        lambda *_: seen.append(tower.encoder.layers[0].self_attn.config._attn_implementation)
    )
    loop.divergence(Proposal(1.5, 0.4, 4.0, (0.5, 0.5, 0.5)))
    hook.remove()
    assert seen == ["sdpa", "eager"] * 4
    assert tower.config._attn_implementation == "sdpa"


def test_its_importance_is_ours(loop: PublishedLoop, subject: Subject) -> None:
    proposal = Proposal(1.5, 0.4, 4.0, (0.5, 1.0, 1.0))
    strategy = same_strategy(loop, proposal, subject)
    objective = build_objective(subject.model, subject.processor, subject.samples)
    adapter = objective.adapter
    recorder = VisionRecorder(adapter, layer=loop.vision_layer, pixels=subject.pixels)
    [inputs] = encoded_batches(adapter, subject.processor, subject.samples.samples[:1], 1)
    with torch.no_grad(), loop._eager_tower():
        encoded = loop.base.get_image_features(
            pixel_values=inputs["pixel_values"],
            image_sizes=inputs["image_sizes"],
            output_attentions=True,
        )
        map_TPP = encoded.attentions[loop.vision_layer].float().mean(1)
        theirs, cells = loop._importance(
            loop.inputs[0], map_TPP, proposal, len(encoded.pooler_output[0])
        )
    with torch.no_grad(), recorder.recording():
        adapter.base.get_image_features(
            pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"]
        )
    from vflowopt_search.importance.registry import make_score

    [ours] = make_score(strategy.importance, "received_attention")(recorder.calls["image"])
    separator_N = recorder.calls["image"].images[0].grid.separator_N
    torch.testing.assert_close(ours[~separator_N], theirs[~separator_N], rtol=1e-4, atol=1e-6)
    assert [cell is None for cell in cells] == separator_N.tolist()


@given(
    first=st.floats(0.05, 0.5), second=st.floats(0.05, 1.0), retain=st.sampled_from([0.1, 0.2, 0.5])
)
def test_the_last_ratio_meets_the_budget_or_is_clipped(
    first: float, second: float, retain: float
) -> None:
    loop = loop_of(SHARED, retain)
    proposal = loop.proposal([1.0, 0.0, 4.0, first, second])
    depth = len(loop.base.language_model.layers)
    if proposal is None:
        return
    kept = mean_retained(same_strategy(loop, proposal, SHARED).stages, depth)
    if proposal.ratios[2] < 1:
        assert kept == pytest.approx(retain)
    else:
        assert kept <= retain + 1e-9


SHARED = subjects.testbed(1)


def test_recycling_by_hand() -> None:
    """Four tokens of one cell, the two least important of which become one."""
    features_ND = torch.tensor([[0.0], [10.0], [20.0], [30.0]])
    score_N = torch.tensor([0.1, 0.3, 0.6, 0.9])
    cells = places([False] * 4, 2)
    kept_K, merged_KD = recycle(features_ND, score_N, cells, Proposal(0, 0, 3.0, (0.5, 1, 1)))
    assert kept_K.tolist() == [1, 2, 3]
    assert merged_KD[:, 0].tolist() == pytest.approx([7.5, 20.0, 30.0])


def test_it_proposes_as_published(loop: PublishedLoop) -> None:
    pytest.importorskip("skopt", reason="the published sampler is in the extra `bench`")
    seen = list(loop.search(3, seed=0))
    assert STARTS == 27
    assert [0 <= value <= 1 for value, _, _ in seen] == [True] * 3
    assert [seconds for _, seconds, _ in seen] == sorted(seconds for _, seconds, _ in seen)
    # an infeasible proposal is worth 1 and costs nothing
    assert [spent for _, _, spent in seen] == [0 if value == 1 else 4 for value, _, _ in seen]
