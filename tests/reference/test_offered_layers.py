"""A search chooses among layers whose attention is kept; what is left out is said."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_study import SPACE
from tests.pruning.oracle import strategy_of
from tests.small_set import small_set
from tests.tiny import tiny_model, tiny_processor
from vflowopt_search import search
from vflowopt_search.errors import StudyError
from vflowopt_search.objective import Objective, build_objective
from vflowopt_search.reference.offered_layers import evenly_spaced, offered_layers
from vflowopt_search.reference.shelf import GB
from vflowopt_search.strategy import Importance

LAYER_BYTES = 4 * 7 * 16 * 17  # of seven images of llava


@given(layers=st.sets(st.integers(0, 60), min_size=1).map(sorted), data=st.data())
def test_evenly_spaced_layers_end_with_the_last(layers: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(layers)))
    chosen = evenly_spaced(layers, count)
    places = [layers.index(layer) for layer in chosen]
    assert len(set(chosen)) == count and places == sorted(places)
    assert chosen[-1] == layers[-1]
    gaps = [after - before for before, after in pairwise([-1, *places])]
    assert max(gaps) - min(gaps) <= 1


@given(
    num_layers=st.integers(1, 40),
    layer_bytes=st.floats(1, 1e12),
    room=st.floats(0, 1e13),
)
def test_what_is_offered_fits_or_nothing_does(
    num_layers: int, layer_bytes: float, room: float
) -> None:
    offered = offered_layers(range(num_layers), layer_bytes, room)
    assert len(offered.layers) * layer_bytes <= room * (1 + 1e-9) or layer_bytes > room
    assert (offered.note is None) == (num_layers * layer_bytes <= room)
    more = offered_layers(range(num_layers), layer_bytes, 2 * room)
    assert len(more.layers) >= len(offered.layers) or layer_bytes > room


def objective_within(layers: float) -> Objective:
    """On a memory that holds attention of so many layers."""
    return build_objective(
        tiny_model("llava"),
        tiny_processor("llava"),
        small_set(),
        cache_gb=layers * LAYER_BYTES / GB,
    )


def test_a_search_that_cannot_keep_all_layers_chooses_among_fewer_and_says_so() -> None:
    objective = objective_within(2.5)
    assert objective.facts.vision_layers_available == (1, 3)
    [note] = [n for n in SPACE.bind(objective.facts).notes if "vision_depth" in n]
    assert note.startswith("vision_depth chooses among 2 of 4 encoder layers: attention of all")
    assert "allow more with --cache-gb" in note
    runs: list[int] = []
    hook = objective.adapter.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    for layer in (1, 3, 1, 3):
        objective.measure(
            strategy_of((0, 0.5), importance=Importance(vision_layer=layer)), range(7)
        )
    hook.remove()
    assert len(runs) == 1


def test_where_not_one_layer_can_be_kept_all_are_offered_and_it_is_said() -> None:
    objective = objective_within(0.5)
    assert objective.facts.vision_layers_available == (0, 1, 2, 3)
    [note] = [n for n in SPACE.bind(objective.facts).notes if "encoder runs again" in n]
    assert "in every trial; allow more with --cache-gb" in note


def test_where_all_fits_nothing_is_said_nor_where_no_layer_is_searched() -> None:
    assert objective_within(4).facts.layers_note is None
    fixed = SPACE.importance.vision_depth.model_validate(1.0)
    importance = SPACE.importance.model_copy(update={"vision_depth": fixed})
    space = SPACE.model_copy(update={"importance": importance})
    assert not [n for n in space.bind(objective_within(2.5).facts).notes if "encoder" in n]


def searched_within(layers: float, journal: Path) -> None:
    search(
        tiny_model("llava"),
        tiny_processor("llava"),
        small_set(),
        retain=0.5,
        trials=1,
        storage=journal,
        cache_gb=layers * LAYER_BYTES / GB,
    )


@pytest.mark.parametrize(("before", "after"), [(2.5, 1.5), (2.5, 4), (4, 2.5)])
def test_a_study_is_resumed_with_the_layers_that_it_was_made_with(
    before: float, after: float, tmp_path: Path
) -> None:
    journal = tmp_path / "study.journal"
    searched_within(before, journal)
    searched_within(before + 0.1, journal)  # as many layers fit
    with pytest.raises(StudyError, match=r"vision_layers .*; give the --cache-gb that it was"):
        searched_within(after, journal)


@pytest.mark.parametrize("layers", [0.5, 4])
def test_all_layers_are_no_part_of_what_a_study_depends_on(layers: float) -> None:
    assert "vision_layers" not in objective_within(layers).fingerprint


def test_the_same_layers_are_offered_from_a_folder_that_holds_what_was_computed(
    tmp_path: Path,
) -> None:
    seen = []
    for _ in range(2):
        objective = build_objective(
            tiny_model("llava"),
            tiny_processor("llava"),
            small_set(),
            cache=tmp_path,
            cache_gb=5e-5,
        )
        objective.measure(strategy_of((0, 0.5), importance=Importance(vision_layer=3)), range(7))
        seen.append(objective.fingerprint["vision_layers"])
    assert seen[0] == seen[1]


@pytest.mark.parametrize(("size", "said"), [(142e9, "142.0"), (0.06e9, "0.1"), (3e3, "3e-06")])
def test_sizes_are_said_in_gigabytes(size: float, said: str) -> None:
    note = offered_layers([0, 1], size / 2, size / 2).note
    assert note is not None and f"takes {said} GB" in note
