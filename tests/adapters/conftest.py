"""One checkpoint folder of each family."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import FAMILIES, save_checkpoint


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save_checkpoint(tmp_path_factory.mktemp(family), family) for family in FAMILIES}
