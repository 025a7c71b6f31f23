"""What holds for every test: no network, nothing written to the user's home, the same seeds."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

# Before any import of a library that reads them. Subprocesses inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
_home = tempfile.TemporaryDirectory(prefix="vflowopt-tests-")
os.environ["HF_HOME"] = _home.name
os.environ.setdefault("COLUMNS", "120")  # tables as wide wherever the tests run
# Kernels run in Triton's interpreter, on the CPU; `TRITON_INTERPRET=0` runs them on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

if TYPE_CHECKING:
    from tests.command import World

# Derandomised: the same cases on every machine, so that a red test stays red.
settings.register_profile("vflowopt", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("vflowopt")


@pytest.fixture(autouse=True)
def seeds() -> Iterator[None]:
    """Start every test from the same global generators, for the library code that draws on them."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A tiny checkpoint with its samples, and a cache of its own."""
    from tests.command import make_world

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VFLOWOPT_SEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield make_world(tmp_path_factory.mktemp("world"))
