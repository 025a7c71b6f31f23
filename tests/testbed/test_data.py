from __future__ import annotations

import pytest

from vflowopt_search.testbed.data import calibration_dataset, evaluation_dataset


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
