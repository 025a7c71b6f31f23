from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vflowopt_search.divergence import METRICS, Readout, divergence
from vflowopt_search.errors import DivergenceError, StudyError

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
HIGHEST = {"last_token_cosine": 2.0, "flow": 2.0, "kl": float("inf"), "total_variation": 1.0}
every_metric = pytest.mark.parametrize("metric", sorted(METRICS))


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32, allow_subnormal=False)


def hidden(elements: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[Floats, Floats]]:
    """Two arrays of one shape (B, L, D)."""
    shapes = array_shapes(min_dims=3, max_dims=3, max_side=4)
    return shapes.flatmap(
        lambda shape: st.tuples(*[arrays("float32", shape, elements=elements)] * 2)
    )


PAIRS = hidden(numbers(-(2.0**120), 2.0**120) | numbers(-8, 8))


def readout(values_BLD: Tensor) -> Readout:
    """A readout whose logits are the last layer's hidden state."""
    return Readout(hidden_BLD=values_BLD, logits_BV=values_BLD[:, -1])


def random_readout(seed: int, dtype: torch.dtype = torch.float32) -> Readout:
    generator = torch.Generator().manual_seed(seed)
    hidden_BLD = torch.randn(4, 3, 33, generator=generator)
    logits_BV = torch.randn(4, 101, generator=generator) * 3
    return Readout(hidden_BLD.to(dtype), logits_BV.to(dtype))


def test_the_metrics_are_those_of_the_interface() -> None:
    assert set(METRICS) == set(HIGHEST)


@every_metric
@given(pair=PAIRS)
def test_it_lies_in_its_range(metric: str, pair: tuple[Floats, Floats]) -> None:
    reference, pruned = (readout(torch.from_numpy(values)) for values in pair)
    value_B = divergence(metric, reference, pruned)
    assert value_B.shape == (len(pair[0]),)
    assert value_B.dtype == torch.float64
    assert ((value_B >= 0) & (value_B <= HIGHEST[metric])).all()


def rounding_pair(case: str) -> tuple[Tensor, Tensor]:
    """Many samples (B, D) that stand exactly at an end of a metric's range."""
    values_BD = torch.randn(5000, 33, generator=torch.Generator().manual_seed(0))
    if case == "opposite":
        return values_BD, -3 * values_BD
    if case == "almost equal":
        return values_BD, values_BD.double() + 1e-9
    disjoint_BD = 200 * (values_BD - torch.tensor([0, 5000] * 16 + [0]))
    return disjoint_BD, disjoint_BD.roll(1, dims=-1)


@every_metric
@pytest.mark.parametrize("case", ["opposite", "almost equal", "disjoint"])
def test_rounding_does_not_leave_the_range(metric: str, case: str) -> None:
    reference, pruned = (readout(values_BD[:, None]) for values_BD in rounding_pair(case))
    value_B = divergence(metric, reference, pruned)
    assert ((value_B >= 0) & (value_B <= HIGHEST[metric])).all()


@every_metric
@given(pair=PAIRS)
def test_identical_readouts_are_exactly_zero_apart(
    metric: str, pair: tuple[Floats, Floats]
) -> None:
    values_BLD = torch.from_numpy(pair[0])
    elsewhere_BLD = values_BLD.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    value_B = divergence(metric, readout(values_BLD), readout(elsewhere_BLD))
    assert value_B.tolist() == [0.0] * len(values_BLD)


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_identity_is_exact_at_the_width_of_a_model(metric: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_BLD = (torch.randn(2, 3, 3584, generator=generator) * 5).to(dtype)
    logits_BV = (torch.randn(2, 15201, generator=generator) * 9).to(dtype)
    reference = Readout(hidden_BLD, logits_BV)
    # The same values, another layout in memory: sums must not be taken in another order.
    pruned = Readout(hidden_BLD.mT.contiguous().mT, logits_BV.mT.contiguous().mT)
    assert divergence(metric, reference, pruned).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("metric", ["total_variation", "last_token_cosine", "flow"])
@given(pair=PAIRS)
def test_these_metrics_are_symmetric(metric: str, pair: tuple[Floats, Floats]) -> None:
    one, other = (readout(torch.from_numpy(values)) for values in pair)
    assert torch.equal(divergence(metric, one, other), divergence(metric, other, one))


@every_metric
def test_it_sees_a_difference_and_each_sample_alone(metric: str) -> None:
    reference, pruned = random_readout(0), random_readout(1)
    value_B = divergence(metric, reference, pruned)
    assert (value_B > 0.01).all()
    for row in range(4):
        one = Readout(reference.hidden_BLD[row : row + 1], reference.logits_BV[row : row + 1])
        other = Readout(pruned.hidden_BLD[row : row + 1], pruned.logits_BV[row : row + 1])
        torch.testing.assert_close(divergence(metric, one, other), value_B[row : row + 1])


def test_cosine_is_that_of_the_last_layer() -> None:
    reference, pruned = random_readout(0), random_readout(1)
    cosine_BL = cosine_similarity(reference.hidden_BLD.double(), pruned.hidden_BLD.double(), dim=-1)
    torch.testing.assert_close(
        divergence("last_token_cosine", reference, pruned), 1 - cosine_BL[:, -1]
    )
    torch.testing.assert_close(divergence("flow", reference, pruned), 1 - cosine_BL.mean(-1))


def test_distributions_by_hand() -> None:
    hidden_BLD = torch.ones(1, 1, 1)
    one = Readout(hidden_BLD, torch.tensor([[0.5, 0.5]]).log() + 7)
    other = Readout(hidden_BLD, torch.tensor([[0.9, 0.1]]).log() - 3)
    expected = 0.5 * torch.tensor([0.5 / 0.9, 0.5 / 0.1]).log().sum().item()
    assert divergence("kl", one, other).item() == pytest.approx(expected, rel=1e-6)
    assert divergence("total_variation", one, other).item() == pytest.approx(0.4, rel=1e-6)


def test_a_gap_far_below_the_precision_of_the_cosine_is_still_seen() -> None:
    step = 1e-9
    one, other = torch.tensor([[[1.0, 0.0]]]).double(), torch.tensor([[[1.0, step]]]).double()
    value = divergence("last_token_cosine", readout(one), readout(other)).item()
    assert value == pytest.approx(step**2 / 2, rel=1e-6)


@pytest.mark.parametrize("metric", ["last_token_cosine", "flow"])
def test_opposite_and_zero_vectors(metric: str) -> None:
    reference = torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    pruned = torch.tensor([[[-3.0, -4.0]], [[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]]])
    assert divergence(metric, readout(reference), readout(pruned)).tolist() == [2, 1, 1, 0]


@every_metric
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["unpruned", "pruned"])
def test_what_is_not_finite_is_refused(metric: str, value: float, side: str) -> None:
    sound, broken = random_readout(0), random_readout(1)
    broken.hidden_BLD[1, -1, 5] = broken.hidden_BLD[3, -1, 0] = value
    broken.logits_BV[1, 5] = broken.logits_BV[3, 0] = value
    pair = (broken, sound) if side == "unpruned" else (sound, broken)
    where = (
        rf"{metric}: what the {side} model gave is not finite for 2 of 4 samples \(rows \[1, 3\]"
    )
    with pytest.raises(DivergenceError, match=where + ".*bfloat16 or float32"):
        divergence(metric, *pair)


def test_an_answer_that_is_not_finite_is_refused() -> None:
    logits_BV = torch.tensor([[1e308, -1e308], [1.0, 2.0]], dtype=torch.float64)
    huge = Readout(torch.ones(2, 1, 1), logits_BV)
    rule = r"kl: the divergence is not finite for 1 of 2 samples \(rows \[0\]"
    with pytest.raises(DivergenceError, match=rule):
        divergence("kl", huge, huge)


def test_a_metric_reads_only_its_own_part() -> None:
    reference = random_readout(0)
    broken = random_readout(1)
    broken.logits_BV.fill_(float("nan"))
    broken.hidden_BLD[:, :-1] = float("nan")
    assert divergence("last_token_cosine", reference, broken).isfinite().all()
    broken = Readout(torch.full((4, 3, 33), float("nan")), random_readout(1).logits_BV)
    assert divergence("kl", reference, broken).isfinite().all()


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    rule = "no metric is called 'mse'; use one of flow, kl, last_token_cosine, total_variation"
    with pytest.raises(StudyError, match=rule):
        divergence("mse", random_readout(0), random_readout(0))
