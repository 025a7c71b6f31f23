"""Running out of memory is known for what it is, on a CPU too."""

from __future__ import annotations

import pytest
import torch

from vflowopt_search.memory_errors import is_out_of_memory


def test_a_cpu_without_room_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert not isinstance(caught.value, torch.OutOfMemoryError)  # torch has no type for it there
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("The size of tensor a (3) must match"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_only_that(error: Exception, said: bool) -> None:
    assert is_out_of_memory(error) == said
