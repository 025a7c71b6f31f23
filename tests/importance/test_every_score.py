"""What holds for every score; no test asks which one it is looking at."""

from __future__ import annotations

import pytest
import torch

from tests.importance.batches import Image, make_signals
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.importance.registry import SCORES, make_score
from vflowopt_search.importance.scores import ImportanceScore
from vflowopt_search.importance.signals import VisualSignals
from vflowopt_search.strategy import Importance, PixelScale

PIXELS = PixelScale(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
PARAMETERS = [
    Importance(),
    Importance(context_threshold=1.1, entropy_weight=0.7, pixels=PIXELS, seed=5),
    Importance(context_threshold=50, entropy_weight=-1, pixels=PIXELS, seed=2**40),
]
MEMBERS = [
    pytest.param(make_score(parameters, name), id=f"{name}-{number}")
    for name in SCORES
    for number, parameters in enumerate(PARAMETERS)
]
IMAGES = (Image(0, 1), Image(1, 3), Image(2, 2), Image(3, 1))
every_score = pytest.mark.parametrize("score", MEMBERS)


@every_score
def test_one_finite_value_per_token(score: ImportanceScore) -> None:
    signals = make_signals(*IMAGES)
    values = score(signals)
    assert [len(value_N) for value_N in values] == [len(image.grid) for image in signals.images]
    assert all(value_N.dtype == torch.float32 for value_N in values)
    assert all(value_N.isfinite().all() for value_N in values)


@every_score
@pytest.mark.parametrize("rows", [[3, 1, 0, 2], [1, 1, 1], [2], [0, 3, 3, 0, 1]])
def test_an_image_has_the_same_scores_in_any_batch(score: ImportanceScore, rows: list[int]) -> None:
    values = score(make_signals(*IMAGES))
    elsewhere = score(make_signals(*[IMAGES[row] for row in rows]))
    for row, value_N in zip(rows, elsewhere, strict=True):
        torch.testing.assert_close(value_N, values[row], rtol=1e-5, atol=1e-7)


@every_score
def test_it_declares_everything_it_reads(score: ImportanceScore) -> None:
    everything = make_signals(*IMAGES)
    declared = score(everything.only(score.needs))
    for seen_N, value_N in zip(declared, score(everything), strict=True):
        assert torch.equal(seen_N, value_N)


@every_score
def test_it_reads_everything_it_declares(score: ImportanceScore) -> None:
    assert score.needs <= {"attention", "entropy", "text_attention"}
    everything = make_signals(*IMAGES)
    for name in score.needs:
        with pytest.raises(UnsupportedError, match=f"signal '{name}' is not available"):
            score(everything.only(score.needs - {name}))


@every_score
def test_the_same_input_gives_the_same_scores(score: ImportanceScore) -> None:
    first = score(make_signals(*IMAGES))
    torch.rand(3)  # the global generator has moved on
    for again_N, value_N in zip(score(make_signals(*IMAGES)), first, strict=True):
        assert torch.equal(again_N, value_N)


@every_score
def test_the_signals_are_left_as_they_were(score: ImportanceScore) -> None:
    signals, untouched = make_signals(*IMAGES), make_signals(*IMAGES)
    score(signals)
    for one, other in zip(_tensors(signals), _tensors(untouched), strict=True):
        assert torch.equal(one, other)


def _tensors(signals: VisualSignals) -> list[torch.Tensor]:
    assert signals.attention is not None
    assert signals.entropy is not None
    assert signals.text_attention is not None
    received = [run.received() for run in signals.attention]
    grids = [part for image in signals.images for part in vars(image.grid).values()]
    return [*received, *signals.entropy, *signals.text_attention, *grids]
