"""Where kernels are tested: their device, memory full of garbage, and the one tolerance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory is full of NaN and of the largest integers: what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def framed(values: Tensor) -> Tensor:
    """The same values as a view into a larger tensor: NaN, 1 or True lie on every side of them.

    Rows are no longer next to each other, and whoever reads beside one gets what is plausible or
    poisonous, but wrong.
    """
    garbage = float("nan") if values.is_floating_point() else 1
    outer = values.new_full([size + 2 for size in values.shape], garbage)
    inner = outer[tuple(slice(1, size + 1) for size in values.shape)]
    return inner.copy_(values)


def assert_twins(kernel: Tensor, definition: Tensor) -> None:
    """Equal up to the order of sums in fp32, and up to one step where the answer is half."""
    assert kernel.dtype == definition.dtype
    step = torch.finfo(definition.dtype).eps
    torch.testing.assert_close(kernel, definition, rtol=max(step, 1e-4), atol=1e-6)
