"""Who serves which model, and what a model is called in a strategy file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import BatchFeature, BertConfig, BertModel

from tests.families import TinyFamily, all_families
from tests.tiny import FAMILIES, noise_image, save_checkpoint, tiny_config, tiny_model
from vflowopt_search.adapters.loading import load_model
from vflowopt_search.adapters.registry import (
    adapter_for,
    config_sha256,
    families,
    identity_of,
)
from vflowopt_search.errors import ModelError
from vflowopt_search.importance.registry import SCORES

ONE_PER_IMAGE = ("image_grid_thw", "image_grids", "high_res_pixel_values")
DRAWN_IN_TILES = ("granite_docling", "llama4")
every_family = pytest.mark.parametrize("family", FAMILIES)


def test_every_family_offers_scores_that_exist() -> None:
    for family in families():
        assert set(family.scores) <= set(SCORES)
        assert set(family.positions) <= {"original", "packed"}


def test_every_family_is_under_the_contract_tests() -> None:
    tested = {family.model_type for family in all_families().values()}
    assert {family.model_type for family in families()} <= tested


def test_every_family_that_offers_videos_is_tested_with_videos_alone() -> None:
    tested = {family.model_type for family in _variants("video") if family.name.endswith("-video")}
    assert {family.model_type for family in _variants("video")} <= tested


def test_every_family_that_offers_several_images_is_tested_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[object] = []

    def counted(*args: Any) -> Image.Image:
        drawn.append(args)
        return noise_image(*args)

    monkeypatch.setattr("tests.families.noise_image", counted)
    lacking = {family.model_type for family in _variants("several images")}
    for family in _variants("several images"):
        if family.model_type not in lacking:
            continue
        drawn.clear()
        inputs = family.inputs(torch.float32)
        if _number_of_images(family, inputs, len(drawn)) > len(inputs["input_ids"]):
            lacking.remove(family.model_type)
    assert lacking == set()


def _variants(kind: str) -> list[TinyFamily]:
    """The tiny variants of families that offer this kind of input."""
    offering = {family.model_type for family in families() if kind in family.inputs}
    return [one for one in all_families().values() if one.model_type in offering]


def _number_of_images(family: TinyFamily, inputs: BatchFeature, drawn: int) -> int:
    """Images in the prompts of a variant; 0 where they cannot be told from parts or frames.

    Every picture drawn is one, unless another input has one entry per image.
    """
    for name in ONE_PER_IMAGE:
        if name in inputs:
            return len(inputs[name])
    kind = family.name.removeprefix(family.model_type)
    in_parts = family.model_type in DRAWN_IN_TILES and kind != "-images"
    return 0 if in_parts or "video" in kind else drawn


def test_a_model_that_nobody_serves_is_refused_by_name() -> None:
    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    with pytest.raises(ModelError, match=r"model_type 'bert'.*supported are: .*llava, "):
        adapter_for(BertModel(config))


@every_family
def test_identity_survives_saving_and_loading(family: str, tmp_path: Path) -> None:
    saved = identity_of(load_model(save_checkpoint(tmp_path, family)))
    built = identity_of(tiny_model(family))
    assert saved.name == str(tmp_path)
    assert built.name is None
    assert saved.model_copy(update={"name": None}) == built
    assert (built.decoder_layers, built.vision_layers, built.hidden_size) == (6, 4, 32)


@every_family
def test_another_configuration_has_another_fingerprint(family: str) -> None:
    config = tiny_config(family)
    before = config_sha256(config)
    config.text_config.rms_norm_eps = 0.5
    assert config_sha256(config) != before


def test_the_configurations_fingerprint_is_of_no_fine_tune_and_of_one_transformers() -> None:
    """Why strategy files state it and nobody compares it."""
    one, tuned = tiny_model("llava"), tiny_model("llava", seed=1)
    assert identity_of(one).config_sha256 == identity_of(tuned).config_sha256
    made: Any = type(one.config)
    newer = made(**one.config.to_dict(), a_field_of_the_next_release=False)
    assert config_sha256(newer) != config_sha256(one.config)
