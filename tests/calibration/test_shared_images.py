"""Samples that show the same images: kept out of the other half, and resampled together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.small_set import small_set
from vflowopt_search.calibration.samples import CalibrationSet, Sample, Video, fingerprint
from vflowopt_search.calibration.shared_images import (
    about_others,
    apart,
    image_clusters,
    shown_images,
    without_images_of,
)


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (2, 1), (number, 0, 0))


def showing(*numbers: int) -> Sample:
    return Sample("one", "?", tuple(map(picture, numbers)))


def pixels(samples: Iterable[Sample]) -> set[bytes]:
    return {image.tobytes() for sample in samples for image in sample.images}


def a_video(*frames: Image.Image) -> Sample:
    return Sample("one", "?", (), videos=(Video(frames),))


def moving(number: int) -> Image.Image:
    frame = picture(0)
    frame.putpixel((0, 0), (number, 1, 1))
    return frame


def set_of(samples: list[Sample]) -> CalibrationSet:
    return CalibrationSet("test", tuple(samples), fingerprint(samples))


some_samples = st.lists(
    st.lists(st.integers(0, 9), max_size=3).map(lambda numbers: showing(*numbers)), max_size=10
)


def test_one_shared_image_of_several_is_enough() -> None:
    seen = set_of([showing(1, 2)])
    others = set_of([showing(1, 3), showing(1), showing(2), showing(3), showing(4, 3)])
    left = without_images_of(others, seen)
    assert left is not None
    assert left.samples == others.samples[3:]
    assert left.sha256 == fingerprint(left.samples)


def test_samples_that_show_a_seen_image_are_not_held_out() -> None:
    seen = small_set(3)
    asked_again = [replace(sample, prompt="another question") for sample in seen.samples]
    others = replace(small_set(5, seed=9), samples=(*asked_again, *small_set(5, seed=9).samples))
    left = without_images_of(others, seen)
    assert left is not None
    assert left.samples == small_set(5, seed=9).samples
    assert left.sha256 == small_set(5, seed=9).sha256
    assert without_images_of(seen, seen) is None


def test_clusters_are_connected_by_samples_between_them() -> None:
    assert image_clusters([showing(1, 2), showing(5), showing(3), showing(2, 3)]) == [0, 1, 0, 0]
    assert image_clusters([showing(1, 2), showing(1, 3), showing(1)]) == [0, 0, 0]
    assert image_clusters([showing(1), showing(2), showing(1), showing(2)]) == [0, 1, 0, 1]


def test_samples_without_images_are_clusters_of_their_own() -> None:
    assert image_clusters([showing(1), showing(), showing(2), showing(), showing(1)]) == [
        *(0, 1, 2, 3, 0)
    ]
    assert image_clusters([]) == []


def test_a_video_shares_each_of_its_frames_but_not_its_black_ones() -> None:
    black, longer = picture(0), a_video(picture(0), moving(1), moving(2))
    assert image_clusters([longer, a_video(black, moving(3)), a_video(moving(2))]) == [0, 1, 0]
    assert image_clusters([longer, Sample("one", "?", (moving(1),))]) == [0, 0]
    assert shown_images(a_video(black)) == shown_images(showing(0))


@given(samples=some_samples)
def test_clusters_are_a_partition_closed_under_shared_images(samples: list[Sample]) -> None:
    clusters = image_clusters(samples)
    shown = [pixels([sample]) for sample in samples]
    for one, other in product(range(len(samples)), repeat=2):
        if shown[one] & shown[other]:
            assert clusters[one] == clusters[other]
    for number, cluster in enumerate(clusters):
        assert clusters[cluster] == cluster <= number
    # nor is any cluster larger than that: whatever part of it is taken, the rest shares an image
    for cluster in set(clusters):
        mine = [number for number, one in enumerate(clusters) if one == cluster]
        reached = {cluster}
        for _ in mine:
            reached |= {i for i in mine if any(shown[i] & shown[j] for j in reached)}
        assert reached == set(mine)


@given(samples=some_samples, seen=some_samples)
def test_no_image_of_what_is_held_out_was_seen(samples: list[Sample], seen: list[Sample]) -> None:
    left = about_others(samples, seen)
    assert pixels(seen).isdisjoint(pixels(left))
    dropped = [sample for sample in samples if not any(sample is one for one in left)]
    assert all(pixels(seen) & pixels([sample]) for sample in dropped)


@given(samples=some_samples, num_first=st.integers(1, 12))
def test_two_parts_of_a_set_share_no_image(samples: list[Sample], num_first: int) -> None:
    first, others = apart(samples, num_first)
    assert len(first) == min(num_first, len(samples))
    assert pixels(first).isdisjoint(pixels(others))
    assert not {id(sample) for sample in first} & {id(sample) for sample in others}


@pytest.mark.parametrize(
    ("num_first", "mine", "left"), [(1, "a", "bcef"), (2, "ad", "bcef"), (3, "abd", "cf")]
)
def test_whole_images_are_taken_so_that_few_samples_are_lost(
    num_first: int, mine: str, left: str
) -> None:
    shown = zip("abcdef", (1, 2, 3, 1, 2, 4), strict=True)
    samples = [replace(showing(number), id=name) for name, number in shown]
    first, others = apart(samples, num_first)
    assert "".join(sample.id for sample in first) == mine
    assert "".join(sample.id for sample in others) == left
