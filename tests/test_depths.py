"""Where stages stand: strictly increasing layers for every answer, and the way back."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vflowopt_search.depths import check_room, fractions_for, layer_at, stage_layers
from vflowopt_search.errors import SearchSpaceError
from vflowopt_search.parameters import Parameter, Scalar

FREE = Parameter(low=0.0, high=1.0)
FRACTION = st.floats(0, 1)


def fixed(share: int | str) -> Parameter:
    return Parameter(fixed=share)


@st.composite
def depth_lists(draw: st.DrawFn) -> list[Parameter]:
    """A first stage at 0, then free ones and fixed ones with rising shares of twelfths."""
    twelfths = sorted(draw(st.sets(st.integers(1, 11), max_size=3)))
    rest = [fixed(f"{p}/12") for p in twelfths]
    for _ in range(draw(st.integers(0, 3))):
        rest.insert(draw(st.integers(0, len(rest))), FREE)
    return [fixed(0), *rest]


@pytest.mark.parametrize(
    ("share", "num_layers", "layer"),
    [(0, 28, 0), ("1/3", 28, 9), ("2/3", 28, 18), ("1/3", 32, 10), ("2/3", 32, 20), ("1/2", 8, 4)],
)
def test_a_share_of_the_depth_is_a_layer(share: int | str, num_layers: int, layer: int) -> None:
    assert layer_at(share, num_layers) == layer


def test_layers_by_hand() -> None:
    depths = [fixed(0), FREE, fixed("1/2"), FREE]
    # Below layer 0 and above layer 4 are three places; below layer 4 of 8 are three as well.
    for fraction, expected in [(0.0, [0, 1, 4, 5]), (0.5, [0, 2, 4, 6]), (1.0, [0, 3, 4, 7])]:
        assert stage_layers(depths, 8, ([fraction] * 4).__getitem__) == expected


@given(depth_lists(), st.integers(1, 80), st.lists(FRACTION, min_size=7, max_size=7))
def test_layers_increase_within_the_model_wherever_there_is_room(
    depths: list[Parameter], num_layers: int, fractions: list[float]
) -> None:
    try:
        check_room(depths, num_layers)
    except SearchSpaceError:
        assume(False)
    layers = stage_layers(depths, num_layers, fractions.__getitem__)
    assert layers == sorted(set(layers))
    assert len(layers) == len(depths)
    assert layers[0] == 0
    assert layers[-1] < num_layers


@given(depth_lists(), st.integers(1, 80), FRACTION, FRACTION)
def test_a_larger_fraction_never_moves_the_last_stage_up(
    depths: list[Parameter], num_layers: int, one: float, other: float
) -> None:
    depths = [*depths, FREE]
    try:
        check_room(depths, num_layers)
    except SearchSpaceError:
        assume(False)
    last = len(depths) - 1
    low, high = (
        stage_layers(depths, num_layers, [*[0.5] * last, fraction].__getitem__)
        for fraction in sorted((one, other))
    )
    assert low[-1] <= high[-1]


@pytest.mark.parametrize("num_layers", [4, 7, 28, 32])
def test_fractions_reach_every_layer_of_the_model(num_layers: int) -> None:
    depths = [fixed(0), FREE, FREE]
    reached = {
        tuple(stage_layers(depths, num_layers, [0.0, a, b].__getitem__))
        for a in [k / 100 for k in range(101)]
        for b in [k / 100 for k in range(101)]
    }
    expected = {(0, a, b) for a in range(1, num_layers) for b in range(a + 1, num_layers)}
    assert reached == expected


@given(st.integers(2, 80), st.data())
def test_the_way_back_leads_to_the_wanted_layers(num_layers: int, data: st.DataObject) -> None:
    wanted = data.draw(st.sets(st.integers(1, num_layers - 1), min_size=1, max_size=4).map(sorted))
    shares: list[Scalar] = [0, *(f"{layer}/{num_layers}" for layer in wanted)]
    depths = [fixed(0), *[FREE] * len(wanted)]
    fractions = fractions_for(depths, shares, num_layers)
    assert stage_layers(depths, num_layers, fractions.__getitem__) == [0, *wanted]
    assert all(0 <= fraction <= 1 for fraction in fractions.values())


def test_a_shallow_model_gets_the_nearest_free_layers() -> None:
    depths = [fixed(0), FREE, FREE, FREE]
    fractions = fractions_for(depths, [0, "1/8", "1/4", "1/2"], 4)
    assert stage_layers(depths, 4, fractions.__getitem__) == [0, 1, 2, 3]


def test_a_range_that_does_not_reach_the_layer_is_refused() -> None:
    late = Parameter(low=0.8, high=1.0)
    with pytest.raises(SearchSpaceError, match=r"at layer 14 but the range 0\.8 to 1\.0 .*; widen"):
        fractions_for([fixed(0), late], [0, "1/2"], 28)


@pytest.mark.parametrize(
    ("depths", "num_layers", "stage"),
    [
        ([fixed(0), FREE], 1, 1),
        ([fixed(0), fixed("1/3")], 2, 1),
        ([fixed(0), FREE, fixed("1/3")], 3, 1),
        ([fixed(0), fixed("2/3"), fixed("1/3")], 28, 2),
    ],
)
def test_stages_without_a_layer_are_refused(
    depths: list[Parameter], num_layers: int, stage: int
) -> None:
    sentence = f"a model of {num_layers} decoder layers has no free layer for stage {stage} of"
    with pytest.raises(SearchSpaceError, match=sentence):
        check_room(depths, num_layers)
