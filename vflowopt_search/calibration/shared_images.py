"""Which samples show the same images: what keeps two sets apart, and what is resampled together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vflowopt_search.calibration.samples import CalibrationSet, Sample, Video, fingerprint

if TYPE_CHECKING:
    from PIL.Image import Image


def shown_images(sample: Sample) -> frozenset[str]:
    """Fingerprint of each image and video frame of a sample, pixel by pixel.

    Frames of one colour count only in a video that has no others: many videos begin in black, and
    have nothing else in common.
    """
    frames = [frame for video in sample.videos for frame in _telling(video)]
    return frozenset(_image_sha256(image) for image in (*sample.images, *frames))


def image_clusters(samples: Sequence[Sample]) -> list[int]:
    """For each sample the first one of its cluster.

    Samples that show the same image are in one cluster, and so are those that others connect: the
    clusters are the connected components. A sample without images is one by itself.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    node_of: dict[str, int] = {}
    edges = [
        (number, len(samples) + node_of.setdefault(image, len(node_of)))
        for number, sample in enumerate(samples)
        for image in sorted(shown_images(sample))
    ]
    nodes = len(samples) + len(node_of)
    from_E, to_E = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges)), (from_E, to_E)), shape=(nodes, nodes))
    _, component = connected_components(graph, directed=False)
    first: dict[int, int] = {}
    return [first.setdefault(each, i) for i, each in enumerate(component[: len(samples)].tolist())]


def about_others(questions: Sequence[Sample], seen: Sequence[Sample]) -> tuple[Sample, ...]:
    """The questions that show no image that a seen sample shows."""
    known = frozenset[str]().union(*map(shown_images, seen))
    return tuple(question for question in questions if known.isdisjoint(shown_images(question)))


def apart(
    samples: Sequence[Sample], num_first: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Two parts of some samples that share no image; the first takes whole clusters where it can.

    Args:
        samples: in the order in which they are taken.
        num_first: how many the first part has, or all where there are fewer; the second has those
            of the others that show none of its images.
    """
    clusters = image_clusters(samples)
    taken: set[int] = set()
    for cluster in dict.fromkeys(clusters):
        if sum(one in taken for one in clusters) >= num_first:
            break
        taken.add(cluster)
    mine = [i for i, cluster in enumerate(clusters) if cluster in taken][:num_first]
    left = [sample for i, sample in enumerate(samples) if i not in set(mine)]
    first = tuple(samples[i] for i in mine)
    return first, about_others(left, first)


def without_images_of(samples: CalibrationSet, seen: CalibrationSet) -> CalibrationSet | None:
    """The samples that show no image of any of `seen`; None where no sample is left."""
    left = about_others(samples.samples, seen.samples)
    return replace(samples, samples=left, sha256=fingerprint(left)) if left else None


def _telling(video: Video) -> tuple[Image, ...]:
    """The frames of more than one colour; all where there are none."""
    return tuple(f for f in video.frames if f.getcolors(maxcolors=1) is None) or video.frames


def _image_sha256(image: Image) -> str:
    digest = hashlib.sha256(repr((image.mode, image.size)).encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
