"""What the engine reads from a call, without running a model."""

from __future__ import annotations

from typing import Any

import pytest

from tests.families import tiny
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.pruning.inputs import placeholder_ids


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llava_onevision", ["image_token_id", "video_token_id"]),
        ("glm4v", ["image_token_id"]),  # frames of a video stand as images
        ("llava", ["image_token_id"]),
        ("video_llama_3", ["image_token_id", "video_token_id"]),  # whose videos are refused
    ],
)
def test_placeholders_are_those_of_every_input_that_is_not_text(
    family: str, names: list[str]
) -> None:
    model: Any = tiny(family).model()
    assert placeholder_ids(adapter_for(model)) == sorted(getattr(model.config, n) for n in names)
