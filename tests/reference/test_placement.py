"""Features wait where they fit, and moving them changes no value."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.small_set import small_set
from tests.tiny import tiny_model, tiny_processor
from vflowopt_search.objective import build_objective
from vflowopt_search.reference import placement
from vflowopt_search.reference.placement import (
    as_is,
    free_memory,
    moved,
    mover,
    pinned,
    place_for,
    settled,
    settled_readout,
)

SIZE = st.integers(0, 2**40)


@given(size=SIZE, device=SIZE, host=SIZE)
def test_nothing_is_put_where_trials_would_lack_room(size: int, device: int, host: int) -> None:
    place = place_for(size, device, host)
    assert place != "device" or 4 * size <= device
    assert place != "pinned" or 2 * size <= host
    assert place != "host" or (4 * size > device and 2 * size > host)


@pytest.mark.parametrize(
    ("size", "place"), [(1, "device"), (25, "device"), (26, "pinned"), (51, "host")]
)
def test_the_fastest_place_comes_first(size: int, place: str) -> None:
    assert place_for(size, free_device=100, free_host=100) == place


def test_moved_features_measure_the_same() -> None:
    objective = build_objective(tiny_model("llava"), tiny_processor("llava"), small_set())
    prepared = objective.reference.prepared
    copied = moved(prepared, torch.clone)
    for one, same in zip(prepared.samples, copied.samples, strict=True):
        assert one.input_ids is same.input_ids
        assert one.entropy is not None and same.entropy is not None
        pairs = zip(one.features + one.entropy, same.features + same.entropy, strict=True)
        for tensor, copy in pairs:
            assert torch.equal(tensor, copy)
            assert tensor.data_ptr() != copy.data_ptr()


def test_what_samples_with_the_same_images_share_is_moved_once() -> None:
    plain = small_set(3)
    samples = tuple(replace(plain.samples[0], id=str(i), prompt="how many " * i) for i in range(3))
    objective = build_objective(
        tiny_model("llava"), tiny_processor("llava"), replace(plain, samples=samples)
    )
    moves: list[torch.Tensor] = []

    def move(one: torch.Tensor) -> torch.Tensor:
        moves.append(one)
        return one.clone()

    copied = moved(objective.reference.prepared, move)
    assert len(moves) == 2  # features and entropy of one image
    first, second, third = (sample.features[0] for sample in copied.samples)
    assert first is second is third


def test_on_the_cpu_nothing_moves() -> None:
    objective = build_objective(tiny_model("llava"), tiny_processor("llava"), small_set())
    assert settled(objective.reference.prepared) is objective.reference.prepared
    readout = objective.reference.readout
    assert settled_readout(readout, torch.device("cpu")).hidden_BLD is readout.hidden_BLD
    assert 0 < free_memory() < 2**50


@pytest.mark.parametrize(
    ("free_device", "free_host", "place"),
    [(1000, 0, "device"), (0, 1000, "pinned"), (0, 0, "as is")],
)
def test_all_that_waits_counts_together(
    free_device: int, free_host: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_device, 10**6))
    monkeypatch.setattr(placement, "free_memory", lambda: free_host)
    one, other = torch.zeros(20), torch.zeros(20)
    gpu = torch.device("cuda")
    assert (mover([one, other, one], gpu) is as_is) == (place == "as is")
    assert (mover([one, other, one], gpu) is pinned) == (place == "pinned")
    assert mover([one] * 4, torch.device("cpu")) is as_is
    double = [torch.zeros(40), torch.zeros(40)]
    assert mover(double, gpu) is (pinned if place == "pinned" else as_is)


def test_a_system_that_does_not_tell_its_memory_has_none_to_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("os.sysconf_names")
    assert free_memory() == 0
    assert place_for(100, free_device=0, free_host=free_memory()) == "host"
