from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vflowopt_search.testbed.data import calibration_dataset, evaluation_dataset

PIXELS = """
import hashlib
from vflowopt_search.testbed.data import calibration_scenes, evaluation_scenes
for scenes in (calibration_scenes(256, 0), evaluation_scenes(1200, 0)):
    print(hashlib.sha256(b"".join(asked.scene.image.tobytes() for asked in scenes)).hexdigest())
"""


def test_calibration_has_no_answers() -> None:
    dataset = calibration_dataset(num_samples=6, seed=3)
    assert dataset.column_names == ["id", "image", "question"]
    assert len(set(dataset["id"])) == len(dataset) == 6
    assert dataset[0]["image"].size == (112, 112)
    assert dataset[0]["question"].endswith("?")


def test_evaluation_asks_four_questions_per_image() -> None:
    dataset = evaluation_dataset(num_questions=22, seed=3)
    assert set(dataset.column_names) == {"id", "image_id", "image", "question", "answer", "type"}
    assert len(set(dataset["id"])) == len(dataset) == 22
    assert len(set(dataset["image_id"])) == 6
    assert dataset[0]["image"].mode == "RGB"


@pytest.mark.parametrize("seed", [0, 1])
def test_datasets_repeat(seed: int) -> None:
    first, again = (evaluation_dataset(num_questions=8, seed=seed) for _ in range(2))
    assert first["question"][:] == again["question"][:]
    assert first[0]["image"].tobytes() == again[0]["image"].tobytes()


@pytest.mark.parametrize("kernel", ["Nehalem", "Zen", "SkylakeX"])
def test_pixels_are_the_same_on_every_cpu(kernel: str) -> None:
    """OpenBLAS multiplies matrices in another order on each; other CPUs than x86 ignore this."""
    made = subprocess.run(
        [sys.executable, "-c", PIXELS],
        env={**os.environ, "OPENBLAS_CORETYPE": kernel},
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.split() == [
        "e1faf99d7d2e5773639cf640fd49a538752be42d7c08e69abae6e7ab0e59e65c",
        "ba68df289bbe133f075cd1027366deed9ff109a020d277919c2c9d51e8db7f92",
    ]
