"""Prompts of a benchmark without a processor: what a model takes, by its configuration alone."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from tests.families import tiny
from tests.tiny import tiny_model, tiny_processor
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.benchmark.pixels import FROM_CONFIG
from vflowopt_search.benchmark.prompts import TEXT_TOKENS, by_processor, without_processor
from vflowopt_search.benchmark.timing import timed_answer
from vflowopt_search.cli.bench import bench
from vflowopt_search.errors import BenchmarkError


@pytest.mark.parametrize("name", sorted(FROM_CONFIG))
@pytest.mark.parametrize("size", [(28, 28), (70, 40)])
def test_prompts_without_a_processor_are_what_the_model_takes(
    name: str, size: tuple[int, int]
) -> None:
    model: Any = tiny(name).model()
    adapter = adapter_for(model)
    inputs = without_processor(adapter).batch(2, size)
    assert set(inputs) == set(tiny(name).inputs(torch.float32))  # a processor's
    encoded = adapter.features(
        model.model.get_image_features(
            **{
                k: v
                for k, v in inputs.items()
                if k in ("pixel_values", "image_sizes", "image_grid_thw")
            },
            return_dict=True,
        )
    )
    placeholders = int((inputs["input_ids"] == adapter.image_token_id).sum())
    assert placeholders == sum(len(one) for one in encoded)
    assert len(timed_answer(adapter, inputs, 2).steps) == 1


@pytest.mark.parametrize("name", ["llava", "llava_onevision"])
def test_they_have_as_many_visual_tokens_as_with_one(name: str) -> None:
    model = tiny_model(name)
    adapter = adapter_for(model)
    for size in ((56, 56), (80, 30)):
        ids = [
            prompts.batch(1, size)["input_ids"]
            for prompts in (without_processor(adapter), by_processor(adapter, tiny_processor(name)))
        ]
        counts = [int((one == adapter.image_token_id).sum()) for one in ids]
        assert counts[0] == counts[1]


def test_text_drawn_at_random_holds_no_placeholder() -> None:
    adapter = adapter_for(tiny_model("llava_onevision"))
    [ids] = without_processor(adapter).batch(1, (28, 28))["input_ids"]
    text = ids[ids != adapter.image_token_id]
    assert len(text) == TEXT_TOKENS and len(text.unique()) > 1
    assert adapter.video_token_id not in text


def test_other_families_need_a_processor() -> None:
    with pytest.raises(BenchmarkError, match="not for gemma3; put the processor's files"):
        without_processor(adapter_for(tiny("gemma3").model()))


def test_the_help_names_exactly_these_families() -> None:
    told = inspect.get_annotations(bench, eval_str=True)["random_init"].__metadata__[0].help
    named = told.partition("for types ")[2].removesuffix(" only.").replace(" and", ",")
    assert sorted(named.split(", ")) == sorted(FROM_CONFIG)
