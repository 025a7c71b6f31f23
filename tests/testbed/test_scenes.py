from __future__ import annotations

import numpy as np
import pytest

from vflowopt_search.testbed.curriculum import FULL_STYLE
from vflowopt_search.testbed.digits import DIGIT_MAX, digit_ink, load_digits, split_indices
from vflowopt_search.testbed.scenes import COLOURS, SHAPES, Scene, make_scene, shape_mask


def scene_of(*seeds: int) -> Scene:
    return make_scene(np.random.default_rng(seeds), FULL_STYLE, "train")


def test_a_scene_is_a_function_of_its_seeds() -> None:
    first, again, other = scene_of(3, 7), scene_of(3, 7), scene_of(3, 8)
    assert (first.image == again.image).all()
    assert first.objects == again.objects
    assert (first.image != other.image).any()


@pytest.mark.parametrize("index", range(10))
def test_objects_stay_inside_and_apart(index: int) -> None:
    scene = scene_of(5, index)
    cover = np.zeros(scene.image.shape[:2], dtype=int)
    for thing in scene.objects:
        assert 0 <= thing.left <= FULL_STYLE.side - thing.size
        assert 0 <= thing.top <= FULL_STYLE.side - thing.size
        cover[thing.top : thing.top + thing.size, thing.left : thing.left + thing.size] += 1
    assert cover.max() == 1
    assert 1 <= len(scene.objects) <= FULL_STYLE.max_objects


@pytest.mark.parametrize("index", range(10))
def test_an_object_shows_its_colour(index: int) -> None:
    scene = scene_of(6, index)
    for number, thing in enumerate(scene.objects):
        away = np.abs(scene.image[scene.owner == number] - np.array(COLOURS[thing.colour]))
        assert (away.max(-1) <= 16).mean() > 0.2  # the rest is ink and softened edge


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_its_own_mask(shape: str) -> None:
    mask = shape_mask(shape, 20)
    assert mask.shape == (20, 20)
    assert 0.3 < mask.mean() < 0.8
    others = [shape_mask(other, 20) for other in SHAPES if other != shape]
    assert min(np.abs(mask - other).mean() for other in others) > 0.05


def test_splits_are_disjoint_and_hold_every_digit() -> None:
    labels = load_digits()[1]
    rows = {split: split_indices(split) for split in ("train", "validation", "test")}
    together = np.concatenate([r for by_digit in rows.values() for r in by_digit.values()])
    assert sorted(together) == list(range(len(labels)))
    for by_digit in rows.values():
        for digit, members in by_digit.items():
            assert len(members) >= 10
            assert (labels[members] == digit).all()


def test_no_drawing_is_in_two_splits() -> None:
    images = load_digits()[0].reshape(-1, 64)
    train = np.concatenate(list(split_indices("train").values()))
    test = np.concatenate(list(split_indices("test").values()))
    assert not {i.tobytes() for i in images[train]} & {i.tobytes() for i in images[test]}


def test_ink_of_the_drawn_size_is_the_drawing() -> None:
    drawing = load_digits()[0][0] / DIGIT_MAX
    np.testing.assert_allclose(digit_ink(0, 8), np.clip(1.3 * drawing, 0, 1), atol=1e-6)
    assert digit_ink(0, 11).shape == (11, 11)
