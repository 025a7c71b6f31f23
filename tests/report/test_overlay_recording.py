"""What is recorded of a sample is what the engine did to it, on the picture that it was done to."""

from __future__ import annotations

from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests import tiny
from tests.families import tiny as tiny_family
from tests.small_set import small_set
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.samples import CalibrationSet
from vflowopt_search.deploy import pruned
from vflowopt_search.objective import Objective, build_objective
from vflowopt_search.report import overlay_recording
from vflowopt_search.report.overlay_record import NO_TOKEN, NOT_MERGED, SampleOverlay
from vflowopt_search.report.overlay_recording import chosen_roles, record_overlays
from vflowopt_search.report.view_pictures import ViewCells, named, restored
from vflowopt_search.strategy import Importance, PixelScale, Recycling, Stage, Strategy

VALUES = [0.3, 0.1, 0.2]


def objective_of(family: str, samples: CalibrationSet | None = None) -> Objective:
    if family in tiny.FAMILIES:
        model, processor = tiny.tiny_model(family), tiny.tiny_processor(family)
    else:
        variant = tiny_family(family)
        assert variant.processor is not None
        model, processor = variant.model(), variant.processor()
    return build_objective(model, processor, samples or small_set(3))


def staged(objective: Objective, *, recycles: bool = True) -> Strategy:
    layers = objective.facts.vision_layers_available
    return Strategy(
        name="staged",
        model=objective.facts.identity,
        importance=Importance(
            vision_layer=layers[-1], entropy_weight=0.2, pixels=objective.facts.pixels
        ),
        stages=(Stage(layer=0, keep_ratio=0.6), Stage(layer=2, keep_ratio=0.5)),
        recycling=Recycling(cell=2.0) if recycles else None,
    )


def check_adds_up(sample: SampleOverlay) -> None:
    """Cells that are alive, and tokens that lie nowhere, are all tokens that are alive."""
    assert sample.all_views == len(sample.views)
    for stage, (alive, elsewhere) in enumerate(
        zip(sample.stage_tokens, sample.stage_elsewhere, strict=True), start=1
    ):
        cells = sum(survived >= stage for view in sample.views for survived in view.survived)
        assert cells + elsewhere == alive
    for view in sample.views:
        for cell, group in enumerate(view.group):
            gone = view.survived[cell] == 0
            assert not (group != NOT_MERGED and not gone and cell not in view.anchors)
        assert all(view.group[anchor] != NOT_MERGED for anchor in view.anchors)


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen2_5_vl", "internvl"])
def test_the_record_is_what_the_engine_did(family: str) -> None:
    objective = objective_of(family)
    strategy = staged(objective)
    overlays, pictures = record_overlays(objective, strategy, VALUES)
    assert [sample.role for sample in overlays.samples] == ["worst"] * 3  # of three, all are worst
    assert [sample.sample for sample in overlays.samples] == [0, 2, 1]
    assert overlays.stages == (0, 2)
    for sample in overlays.samples:
        check_adds_up(sample)
        with pruned(objective.adapter.model, strategy) as applied, torch.inference_mode():
            maps = objective.source.maps
            objective.adapter.model(**encode(maps.processor, [maps.samples[sample.sample]]))
        last = applied.last
        assert last is not None
        assert sample.visual_tokens == last.visual_tokens[0]
        assert list(sample.tokens_per_layer) == last.tokens_per_layer[0]
        assert sample.stage_tokens == tuple(len(last.kept[layer][0]) for layer in (0, 2))
        merged = sum(len(members) for members in last.recycled[0].values())
        assert merged == sum(g != NOT_MERGED for view in sample.views for g in view.group)
        anchors = sum(len(view.anchors) for view in sample.views)
        assert anchors == len(last.recycled[0])
        assert all(view.picture in pictures for view in sample.views)
        scores = [s for view in sample.views for s in view.importance or () if s is not None]
        low, high = float(last.importance[0].min()), float(last.importance[0].max())
        assert min(scores) >= low * 0.999 and max(scores) == pytest.approx(high, rel=1e-3)


def test_two_stages_by_text_show_what_the_first_one_chose_by() -> None:
    objective = objective_of("llava")
    by_text = Strategy(
        name="by text",
        model=objective.facts.identity,
        importance=Importance(score="text_attention"),
        stages=(Stage(layer=2, keep_ratio=0.5), Stage(layer=4, keep_ratio=0.5)),
    )
    alone = by_text.model_copy(update={"stages": by_text.stages[:1]})
    [both], [first] = (
        record_overlays(objective, each, VALUES, roles={1: "best"})[0].samples
        for each in (by_text, alone)
    )
    for view, expected in zip(both.views, first.views, strict=True):
        assert view.importance == expected.importance
        assert view.importance is not None and None not in view.importance


def test_the_views_of_an_image_are_its_whole_and_its_mosaic() -> None:
    objective = objective_of("llava_onevision")
    overlays, _ = record_overlays(objective, staged(objective), VALUES)
    for sample in overlays.samples:
        whole, mosaic = sample.views
        assert (whole.rows, whole.cols) == (4, 4)
        assert (whole.name, mosaic.name) == ("base view", "high-resolution mosaic")
        assert NO_TOKEN not in whole.survived + mosaic.survived
        ends = sample.visual_tokens - 16 - mosaic.rows * mosaic.cols
        assert ends == mosaic.rows  # one separator behind each row


def test_the_picture_is_what_the_encoder_was_given() -> None:
    objective = objective_of("llava")
    overlays, pictures = record_overlays(objective, staged(objective), VALUES)
    view = overlays.samples[0].views[0]
    assert view.picture is not None
    shown = Image.open(BytesIO(pictures[view.picture]))
    assert shown.size == (tiny.TILE, tiny.TILE)  # the square crop, not the image of another shape


def test_normalising_is_undone_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    levels_CHW = torch.randint(0, 256, (3, 5, 7), generator=generator)
    pixels = PixelScale(mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    mean, std = (torch.tensor(each)[:, None, None] for each in (pixels.mean, pixels.std))
    picture = restored((levels_CHW / 255 - mean) / std, pixels)
    assert np.array_equal(np.asarray(picture), levels_CHW.permute(1, 2, 0).numpy())


def cells(*sides: int) -> list[ViewCells]:
    nothing = torch.tensor([], dtype=torch.long)
    return [ViewCells(side, side, nothing, nothing) for side in sides]


@pytest.mark.parametrize(
    ("sides", "kind", "number", "names"),
    [
        ((7,), "image", None, ["the image"]),
        ((7,), "image", 1, ["image 2, the whole image"]),
        ((7, 14), "image", 0, ["image 1, base view", "image 1, high-resolution mosaic"]),
        ((7, 7, 7), "image", None, ["view 1 of 3", "view 2 of 3", "view 3 of 3"]),
        ((7, 7), "image", None, ["view 1 of 2", "view 2 of 2"]),
        ((7, 14), "video", None, ["time step 1 of 2", "time step 2 of 2"]),
    ],
)
def test_views_have_the_names_of_what_they_show(
    sides: tuple[int, ...], kind: str, number: int | None, names: list[str]
) -> None:
    assert named(cells(*sides), kind, number) == names


def test_of_many_views_some_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_of("internvl")
    monkeypatch.setattr(overlay_recording, "MOST_VIEWS", 2)
    [sample] = record_overlays(objective, staged(objective), VALUES, roles={1: "best"})[0].samples
    assert (len(sample.views), sample.all_views) == (2, 3)


@given(st.integers(1, 60), st.integers(2, 9))
def test_views_are_kept_evenly(count: int, most: int) -> None:
    kept = overlay_recording.evenly(count, most)
    assert len(kept) == min(count, most) == len(set(kept))
    assert kept[0] == 0 and kept[-1] == count - 1
    gaps = [b - a for a, b in pairwise(kept)]
    assert max(gaps, default=1) - min(gaps, default=1) <= 1


def test_a_model_whose_grid_is_not_known_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_of("llava")
    monkeypatch.setattr(type(objective.adapter), "knows_grid", False)
    strategy = staged(objective, recycles=False).model_copy(
        update={"importance": Importance(score="uniform")}
    )
    overlays, pictures = record_overlays(objective, strategy, VALUES)
    assert overlays.samples == () and "llava models" in overlays.note
    assert {thumbnail.picture for thumbnail in overlays.thumbnails} == set(pictures)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40))
def test_roles_are_given_by_divergence(values: list[float]) -> None:
    roles = chosen_roles(values, each=3)
    assert len(roles) == min(9, len(values))
    by_role = {r: [values[i] for i in roles if roles[i] == r] for r in ("worst", "median", "best")}
    assert min(by_role["worst"]) >= max(by_role["median"] + by_role["best"], default=0)
    assert min(by_role["median"], default=11) >= max(by_role["best"], default=0)
    assert list(roles.values()) == sorted(roles.values(), key=["worst", "median", "best"].index)


def test_thumbnails_are_of_the_samples_looked_at_and_the_hardest() -> None:
    objective = objective_of("llava", small_set(5))
    values = [0.5, 0.4, 0.3, 0.2, 0.1]
    overlays, _ = record_overlays(
        objective, staged(objective), values, roles={0: "worst"}, hardest=[3, 0, 4]
    )
    assert [thumbnail.sample for thumbnail in overlays.thumbnails] == [0, 3, 4]
