"""Who serves which model, and what a model is called in a strategy file."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from tests.families import all_families
from tests.tiny import FAMILIES, save_checkpoint, tiny_config, tiny_model
from vflowopt_search.adapters.loading import load_model
from vflowopt_search.adapters.registry import (
    adapter_for,
    config_sha256,
    families,
    identity_of,
)
from vflowopt_search.errors import ModelError
from vflowopt_search.importance.registry import SCORES

every_family = pytest.mark.parametrize("family", FAMILIES)


def test_every_family_offers_scores_that_exist() -> None:
    for family in families():
        assert set(family.scores) <= set(SCORES)
        assert set(family.positions) <= {"original", "packed"}


def test_every_family_is_under_the_contract_tests() -> None:
    tested = {family.model_type for family in all_families().values()}
    assert {family.model_type for family in families()} <= tested


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
