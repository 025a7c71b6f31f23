"""What results depend on is in their keys."""

from __future__ import annotations

import copy
from typing import Any

import torch

from tests.small_set import small_set
from tests.tiny import tiny_model, tiny_processor
from vflowopt_search.evaluate.answers import Asking
from vflowopt_search.objective import build_objective
from vflowopt_search.reference.fingerprint import (
    SAMPLED,
    generation_sha256,
    processor_sha256,
    weights_sha256,
)


def test_how_answers_are_chosen_is_in_every_key(tmp_path: Any) -> None:
    model, processor = tiny_model("llava"), tiny_processor("llava")
    options: dict[str, Any] = {"metric": "answer_cosine", "cache": tmp_path}
    first = build_objective(model, processor, small_set(2), **options)
    assert first.answers is not None
    settings = Asking(model, processor).settings()
    model.generation_config.eos_token_id = int(first.answers.answers[0][0])
    other = build_objective(model, processor, small_set(2), **options)
    assert other.answers is not None
    assert len(other.answers.answers[0]) == 1 < len(first.answers.answers[0])
    assert other.fingerprint != first.fingerprint
    assert Asking(model, processor).settings() != settings
    plain = build_objective(model, processor, small_set(2), cache=tmp_path)
    assert plain.reference.from_cache  # the last prompt token does not depend on it
    assert "generation_sha256" not in plain.fingerprint


def test_generation_settings_have_a_fingerprint() -> None:
    model = tiny_model("llava")
    before = generation_sha256(model)
    assert before == generation_sha256(tiny_model("llava"))
    model.generation_config.repetition_penalty = 1.3
    assert generation_sha256(model) != before


def test_every_weight_counts() -> None:
    model = torch.nn.Linear(100, 3 * SAMPLED // 100, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.5)
    before = weights_sha256(model)
    assert weights_sha256(copy.deepcopy(model)) == before
    for place in (0, 1, 2, model.weight.numel() - 1):  # most are between those that are sampled
        changed = copy.deepcopy(model)
        changed.weight.data.view(-1)[place] += 2**-10
        assert weights_sha256(changed) != before


def test_weights_that_change_places_are_noticed() -> None:
    model = torch.nn.Linear(4, 4)
    before = weights_sha256(model)
    model.weight.data = model.weight.data.flip(0)
    assert weights_sha256(model) != before


class Settings:
    def __init__(self, **values: Any) -> None:
        self.values = values

    def to_dict(self) -> dict[str, Any]:
        return self.values


def test_a_processor_is_told_by_all_its_parts() -> None:
    processor: Any = tiny_processor("llava")
    seen = {processor_sha256(processor)}
    processor.num_additional_image_tokens = 7
    seen.add(processor_sha256(processor))
    processor.video_processor = Settings(image_mean=[0.5])
    seen.add(processor_sha256(processor))
    processor.video_processor = Settings(image_mean=[0.6])
    seen.add(processor_sha256(processor))
    assert len(seen) == 4
