"""Run a strategy on some calibration samples and record what became of every visual token.

Shape suffixes: S = positions of one prompt, N = visual tokens of one image, K = of one view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from vflowopt_search.calibration.samples import Sample
from vflowopt_search.deploy import attached_engine
from vflowopt_search.objective import Objective
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.reference.readout import read_out
from vflowopt_search.report.overlay_record import (
    NO_TOKEN,
    NOT_MERGED,
    Overlays,
    Role,
    SampleOverlay,
    Thumbnail,
    View,
    encoded,
    fingerprint,
)
from vflowopt_search.report.view_pictures import Placed, ViewCells, placed_images
from vflowopt_search.strategy import Strategy

if TYPE_CHECKING:
    from vflowopt_search.pruning.single import PruningEngine

MOST_VIEWS = 4
"""Of a sample with more (tiles, frames), so many are kept, evenly spread."""
PICTURE_SIDE = 384  # pixels
THUMBNAIL_SIDE = 128  # pixels
EACH_ROLE = 3
NUM_THUMBNAILS = 12
NO_GRID = (
    "Where the tokens of {model_type} models lie on their image is not known, so nothing can be "
    "drawn on it."
)
OnStep = Callable[[int, int], None]
Divergences = Sequence[float] | Mapping[int, float]
"""By the number of the sample."""


@dataclass(frozen=True, eq=False)
class Fate:
    """What became of the token at each position of one prompt; see `View` for the values."""

    survived_S: Tensor
    group_S: Tensor
    anchor_S: Tensor
    importance_S: Tensor | None


def chosen_roles(per_sample: Sequence[float], each: int = EACH_ROLE) -> dict[int, Role]:
    """The samples of highest, middle and lowest divergence; each once, the worst first."""
    ranked = sorted(range(len(per_sample)), key=lambda i: (-per_sample[i], i))
    middle = max(0, (len(ranked) - each) // 2)
    chosen: dict[int, Role] = {}
    groups: list[tuple[Role, list[int]]] = [
        ("worst", ranked[:each]),
        ("best", ranked[::-1][:each]),
        ("median", ranked[middle : middle + each]),
    ]
    for role, samples in groups:
        for sample in samples:
            chosen.setdefault(sample, role)
    order = {"worst": 0, "median": 1, "best": 2}
    return dict(sorted(chosen.items(), key=lambda item: order[item[1]]))


def record_overlays(
    objective: Objective,
    strategy: Strategy,
    per_sample: Divergences,
    *,
    roles: Mapping[int, Role] | None = None,
    hardest: Sequence[int] = (),
    on_step: OnStep | None = None,
) -> tuple[Overlays, dict[str, bytes]]:
    """Run `strategy` on a few samples; returns the record and the pictures that it names.

    Args:
        objective: has the model and the samples.
        strategy: what is applied.
        per_sample: its divergence on each calibration sample, or on those in `roles`.
        roles: which samples are looked at, and as what; some of each role when None.
        hardest: samples of which a thumbnail is wanted besides.
        on_step: called with (samples done, samples in total).
    """
    if roles is None:
        roles = chosen_roles([per_sample[sample] for sample in range(len(per_sample))])
    samples = objective.source.maps.samples
    pictures: dict[str, bytes] = {}
    found, knows_grid = [], objective.adapter.knows_grid
    for number, (index, role) in enumerate(roles.items() if knows_grid else (), start=1):
        with attached_engine(objective.adapter.model, strategy) as engine:
            last = _prefill(objective, engine, index)
        about = (index, samples[index], role, per_sample[index])
        found.append(_overlay(about, last, placed_images(objective, index), pictures))
        if on_step is not None:
            on_step(number, len(roles))
    shown = list(dict.fromkeys([*roles, *hardest[:NUM_THUMBNAILS]]))
    overlays = Overlays(
        strategy_sha256=fingerprint(strategy),
        stages=tuple(stage.layer for stage in strategy.stages),
        samples=tuple(found),
        thumbnails=tuple(_thumbnail(i, samples[i], pictures) for i in shown),
        note="" if knows_grid else NO_GRID.format(model_type=objective.adapter.model_type),
    )
    return overlays, pictures


def fate_of(last: LastPrefill, visual_S: Tensor) -> Fate:
    """The record of one prompt by position; `visual_S` says where its visual tokens are."""
    length = len(visual_S)
    survived_S = torch.zeros(length, dtype=torch.long)
    group_S, anchor_S = torch.full((length,), NOT_MERGED), torch.zeros(length, dtype=torch.bool)
    for number, layer in enumerate(sorted(last.kept), start=1):
        survived_S[last.kept[layer][0].cpu()] = number
    for number, (anchor, members) in enumerate(last.recycled[0].items()):
        group_S[members] = number
        anchor_S[anchor] = True
    importance_S = None
    if last.importance:
        importance_S = torch.full((length,), torch.nan)
        importance_S[visual_S] = last.importance[0].float().cpu()
    return Fate(survived_S, group_S, anchor_S, importance_S)


def _prefill(objective: Objective, engine: PruningEngine, index: int) -> LastPrefill:
    inputs = objective.source.feed(engine, [index])
    read_out(objective.adapter, inputs, layers=False, logits=False)
    last = engine.applied.last
    assert last is not None  # a prompt with images was just read
    return last


def _overlay(
    about: tuple[int, Sample, Role, float],
    last: LastPrefill,
    images: Sequence[Placed],
    pictures: dict[str, bytes],
) -> SampleOverlay:
    """One sample's record; adds the pictures that it names to `pictures`."""
    index, sample, role, divergence = about
    visual = torch.cat([image.position_N for image in images])
    visual_S = torch.zeros(int(visual.max()) + 1, dtype=torch.bool)
    visual_S[visual] = True
    fate = fate_of(last, visual_S)
    every = [(image, number) for image in images for number in range(len(image.views))]
    some = [every[i] for i in evenly(len(every), MOST_VIEWS)]
    return SampleOverlay(
        sample=index,
        id=sample.id,
        prompt=sample.prompt,
        role=role,
        divergence=divergence,
        visual_tokens=last.visual_tokens[0],
        stage_tokens=tuple(len(last.kept[layer][0]) for layer in sorted(last.kept)),
        stage_elsewhere=_elsewhere(fate, visual_S, every, len(last.kept)),
        tokens_per_layer=tuple(last.tokens_per_layer[0]),
        views=tuple(_view(fate, image, number, pictures) for image, number in some),
        all_views=len(every),
    )


def _view(fate: Fate, image: Placed, number: int, pictures: dict[str, bytes]) -> View:
    view, picture = image.views[number], image.pictures[number]
    position_K = image.position_N[view.token_K]
    file = None
    if picture is not None:
        file, content = encoded(picture, PICTURE_SIDE)
        pictures[file] = content
    importance_S, entropy_N = fate.importance_S, image.entropy_N
    return View(
        name=image.names[number],
        rows=view.rows,
        cols=view.cols,
        picture=file,
        survived=_by_cell(view, fate.survived_S[position_K], NO_TOKEN),
        group=_by_cell(view, fate.group_S[position_K], NOT_MERGED),
        anchors=tuple(view.cell_K[fate.anchor_S[position_K]].tolist()),
        importance=None if importance_S is None else _measured(view, importance_S[position_K]),
        entropy=None if entropy_N is None else _measured(view, entropy_N[view.token_K].cpu()),
    )


def _elsewhere(
    fate: Fate, visual_S: Tensor, every: Sequence[tuple[Placed, int]], stages: int
) -> tuple[int, ...]:
    """Visual tokens alive after each stage that no view has a cell for."""
    left_S = visual_S.clone()
    for image, number in every:
        left_S[image.position_N[image.views[number].token_K]] = False
    return tuple(int((fate.survived_S[left_S] > stage).sum()) for stage in range(stages))


def _by_cell(view: ViewCells, value_K: Tensor, nothing: int) -> tuple[int, ...]:
    cells = torch.full((view.rows * view.cols,), nothing)
    cells[view.cell_K] = value_K
    return tuple(cells.tolist())


def _measured(view: ViewCells, value_K: Tensor) -> tuple[float | None, ...]:
    """Values with four digits, None where there is no token or no finite value."""
    cells = torch.full((view.rows * view.cols,), torch.nan)
    cells[view.cell_K] = value_K.float()
    return tuple(float(f"{value:.4g}") if isfinite(value) else None for value in cells.tolist())


def _thumbnail(index: int, sample: Sample, pictures: dict[str, bytes]) -> Thumbnail:
    shown = [*sample.images, *(frame for video in sample.videos for frame in video.frames[:1])]
    picture = shown[0] if shown else Image.new("RGB", (THUMBNAIL_SIDE, THUMBNAIL_SIDE), "grey")
    name, content = encoded(picture, THUMBNAIL_SIDE)
    pictures[name] = content
    return Thumbnail(sample=index, id=sample.id, prompt=sample.prompt, picture=name)


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of 0..count - 1, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
