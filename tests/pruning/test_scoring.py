"""Which images belong to which row of a batch, and what is kept of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.pruning.oracle import ragged_inputs, strategy_of
from tests.tiny import tiny_model
from vflowopt_search.deploy import attached_engine
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.pruning.scoring import assign_images

SIZES = st.lists(st.lists(st.integers(1, 50), max_size=3), min_size=1, max_size=4)


@given(SIZES, st.integers(1, 3))
def test_every_row_gets_its_images_and_every_beam_those_of_its_row(
    images: list[list[int]], beams: int
) -> None:
    sizes = [size for row in images for size in row]
    rows = [sum(row) for row in images for _ in range(beams)]
    assigned = assign_images(rows, sizes)
    assert [[sizes[i] for i in row] for row in assigned] == [
        r for r in images for _ in range(beams)
    ]
    assert all(assigned[k] == assigned[k - k % beams] for k in range(len(rows)))


@pytest.mark.parametrize(
    ("row_tokens", "image_tokens"),
    [
        ((5, 3), (3, 5)),  # in another order
        ((3, 6), (3,)),  # as many tokens as three beams would have, but of unlike rows
        ((6,), (4,)),
    ],
)
def test_rows_that_no_images_add_up_to_are_refused(
    row_tokens: tuple[int, ...], image_tokens: tuple[int, ...]
) -> None:
    with pytest.raises(UnsupportedError, match=r"no run of the images .* images in order"):
        assign_images(row_tokens, image_tokens)


def test_a_prompt_uses_up_what_was_recorded_of_its_images() -> None:
    model, inputs = tiny_model("llava"), ragged_inputs("llava")
    with torch.no_grad(), attached_engine(model, strategy_of((0, 0.5))) as engine:
        left: list[bool] = []
        layer = model.model.language_model.layers[1]
        watch = layer.register_forward_hook(
            lambda *_: left.append(bool(engine.scoring.recorder.calls))
        )
        model(**inputs)
        watch.remove()
    assert left == [False]  # queries and keys of the encoder take no memory while the decoder runs
