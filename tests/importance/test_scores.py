from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.importance.batches import Image, as_stored, eager_map, make_signals
from vflowopt_search.errors import StrategyError
from vflowopt_search.importance.registry import SCORES, make_score
from vflowopt_search.importance.scores import (
    RandomScore,
    ReceivedAttention,
    TextAttention,
    UniformGrid,
    context_tokens,
)
from vflowopt_search.importance.signals import ImageGeometry, ProjectedAttention, VisualSignals
from vflowopt_search.strategy import Importance, PixelScale

BATCH = (Image(0, 1), Image(1, 3))
PIXELS = PixelScale(mean=(0.5,) * 3, std=(0.5,) * 3)
RECEIVED = st.lists(st.floats(0.015625, 1, width=32), min_size=1, max_size=20)
PATCHES_OF_A_TILE = 9


def expected_map(signals: VisualSignals, threshold: float, weight: float) -> Tensor:
    """Section 1.1 of algorithms.md, patch by patch."""
    assert signals.attention is not None
    assert signals.entropy is not None
    [attention], [entropy_TP] = signals.attention, signals.entropy
    assert isinstance(attention, ProjectedAttention)
    tiles = []
    whole = eager_map(attention.query_THQD, attention.key_THQD, attention.scale)
    for map_QQ, entropy_P in zip(whole, entropy_TP, strict=True):
        received = map_QQ.mean(0)[attention.prefix :]
        context = [j for j in range(len(received)) if received[j] > threshold * received.mean()]
        context = context or [int(received.argmax())]
        rows = map_QQ[attention.prefix :, attention.prefix :][context]
        tiles.append(rows.mean(0) + weight * entropy_P.exp() / entropy_P.exp().sum())
    return torch.stack(tiles)


@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.3, 50.0])
@pytest.mark.parametrize("weight", [0.0, 0.8, -1.0])
def test_received_attention_is_the_published_map(threshold: float, weight: float) -> None:
    signals = make_signals(*BATCH)
    expected = signals.to_tokens([expected_map(signals, threshold, weight)])
    for got_N, expected_N in zip(
        ReceivedAttention(threshold, weight)(signals), expected, strict=True
    ):
        torch.testing.assert_close(got_N, expected_N, rtol=1e-5, atol=1e-6)


def test_a_stored_map_gives_the_same_scores() -> None:
    signals = make_signals(*BATCH)
    assert signals.attention is not None
    [attention] = signals.attention
    assert isinstance(attention, ProjectedAttention)
    stored = replace(signals, attention=(as_stored(attention),))
    score = ReceivedAttention(1.2, 0.5)
    for got_N, expected_N in zip(score(stored), score(signals), strict=True):
        torch.testing.assert_close(got_N, expected_N, rtol=0, atol=1e-6)


def test_entropy_is_needed_only_with_a_weight() -> None:
    assert ReceivedAttention(1.0, 0.0).needs == {"attention"}
    assert ReceivedAttention(1.0, -0.1).needs == {"attention", "entropy"}


def test_context_by_hand() -> None:
    received_TP = torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0], [5.0, 1.0, 5.0]])
    assert context_tokens(received_TP, 0.6).int().tolist() == [[0, 1, 1], [1, 1, 1], [1, 0, 1]]
    # Not one is above three times the mean: the strongest, or all of the strongest.
    assert context_tokens(received_TP, 3.0).int().tolist() == [[0, 0, 1], [1, 1, 1], [1, 0, 1]]


@given(RECEIVED, st.floats(0, 50))
def test_context_is_never_empty_and_holds_the_strongest(
    received: list[float], threshold: float
) -> None:
    context = context_tokens(torch.tensor([received]), threshold)[0].tolist()
    assert context[received.index(max(received))]


@given(RECEIVED, st.floats(0, 50), st.floats(0, 50))
def test_a_higher_threshold_never_adds_context(
    received: list[float], threshold: float, other: float
) -> None:
    low, high = (context_tokens(torch.tensor([received]), t) for t in sorted((threshold, other)))
    assert not (high & ~low).any()


def test_text_attention_is_handed_through() -> None:
    signals = make_signals(*BATCH)
    assert TextAttention()(signals) is signals.text_attention


def random_order(seed: int, num_tokens: int) -> list[int]:
    grid = make_signals(Image(0, num_tokens)).images[0]
    (value_N,) = RandomScore(seed)(VisualSignals(images=(grid,)))
    assert len(torch.unique(value_N)) == len(value_N)
    assert value_N.min() > 0
    assert value_N.max() < 1
    return value_N.argsort().tolist()


def test_random_depends_on_the_whole_seed_and_on_the_number_of_tokens() -> None:
    seeds = [0, 1, 2, 2**32, 2**33, 2**40]
    assert len({tuple(random_order(seed, 3)) for seed in seeds}) == len(seeds)
    assert random_order(0, 4)[:20] != random_order(0, 3)[:20]


def test_random_favours_no_place() -> None:
    kept = torch.zeros(24)
    for seed in range(400):
        kept[random_order(seed, 2)[:6]] += 1
    # Each place is kept in a quarter of 400 draws: 100, standard deviation 8.7.
    assert kept.min() > 60
    assert kept.max() < 140


def test_scores_go_by_their_names() -> None:
    importance = Importance(
        score="random", context_threshold=2.0, entropy_weight=0.5, pixels=PIXELS, seed=3
    )
    assert make_score(importance) == RandomScore(3)
    assert make_score(importance, "received_attention") == ReceivedAttention(2.0, 0.5)
    assert make_score(importance, "text_attention") == TextAttention()
    assert make_score(importance, "uniform") == UniformGrid()
    assert set(SCORES) == {"random", "received_attention", "text_attention", "uniform"}


@pytest.mark.parametrize("name", ["fastv", ""])
def test_an_unknown_score_is_refused_with_the_known_ones(name: str) -> None:
    rule = "use one of random, received_attention, text_attention, uniform"
    with pytest.raises(StrategyError, match=f"no importance score is called '{name}'; {rule}"):
        make_score(Importance(), name)


def test_every_signal_reaches_the_scores_through_the_images_own_geometry() -> None:
    signals = make_signals(Image(0, 1))
    reverse = ImageGeometry(1, 9, signals.images[0].grid, lambda map_TP: map_TP.flatten().flip(0))
    (value_N,) = ReceivedAttention()(replace(signals, images=(reverse,)))
    (usual_N,) = ReceivedAttention()(signals)
    inside = ~signals.images[0].grid.separator_N
    assert len(value_N) == PATCHES_OF_A_TILE
    assert torch.equal(value_N.flip(0), usual_N[inside])
