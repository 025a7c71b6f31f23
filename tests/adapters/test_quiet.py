"""Files at hand are read without bars, and the user's own setting is back afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging

from tests.calibration.data import picture, table
from tests.tiny import save_checkpoint
from vflowopt_search import testbed
from vflowopt_search.adapters.loading import load_model, load_processor
from vflowopt_search.calibration.choice import load_calibration

# transformers annotates these in part only
logging: Any = transformers_logging


def test_a_model_is_loaded_without_bars(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tmp_path, "llava")
    logging.enable_progress_bar()
    capfd.readouterr()
    load_model(tmp_path)
    load_processor(tmp_path)
    testbed.load_model()
    assert "%" not in capfd.readouterr().err
    assert (
        logging.is_progress_bar_enabled() and not logging.hf_hub_utils.are_progress_bars_disabled()
    )


def test_who_wants_no_bars_gets_none_afterwards(tmp_path: Path) -> None:
    logging.disable_progress_bar()
    try:
        load_model(save_checkpoint(tmp_path, "llava"))
        assert (
            not logging.is_progress_bar_enabled()
            and logging.hf_hub_utils.are_progress_bars_disabled()
        )
    finally:
        logging.enable_progress_bar()


@pytest.mark.parametrize("kind", ["images", "parquet", "saved"])
def test_data_is_read_without_bars(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / kind
    if kind == "images":
        source.mkdir()
        for number in range(3):
            picture(number).save(source / f"{number}.png")
    elif kind == "parquet":
        table().to_parquet(source := tmp_path / "data.parquet")
    else:
        table().save_to_disk(source)
    enable_progress_bars()
    capfd.readouterr()
    load_calibration(source, num_samples=2)
    assert capfd.readouterr().err == ""
    assert not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        load_calibration(source, num_samples=2)
        assert are_progress_bars_disabled()
    finally:
        enable_progress_bars()
