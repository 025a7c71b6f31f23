"""Which file of a folder is its strategy: of a run folder by name, beside a checkpoint unasked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pruning.oracle import strategy_of
from tests.tiny import save_checkpoint
from vflowopt_search import prune
from vflowopt_search.adapters.loading import load_model
from vflowopt_search.errors import StrategyError
from vflowopt_search.strategy_hub import STRATEGY_FILE, find_strategy

HALF = strategy_of((1, 0.5))
THIRD = strategy_of((1, 1 / 3))


def test_a_run_folder_by_name_and_never_beside_a_checkpoint(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "mine", "llava")
    HALF.save(folder / "strategy.json")
    assert find_strategy(folder) == HALF
    with pytest.raises(StrategyError, match=f"holds no {STRATEGY_FILE}; save one"):
        prune(load_model(folder))  # nobody named it
    THIRD.save(folder / STRATEGY_FILE)
    assert find_strategy(folder) == THIRD
