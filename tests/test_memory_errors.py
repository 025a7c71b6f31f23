"""Running out of memory is known for what it is, on a CPU too."""

from __future__ import annotations

import pytest
import torch

from vflowopt_search.errors import ModelError
from vflowopt_search.memory_errors import fitting, is_out_of_memory

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 36028797018963968 bytes. Error code 12 (Cannot allocate memory)"
    ),
]


def test_a_cpu_without_room_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError, match="alloc_cpu") as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert not isinstance(caught.value, torch.OutOfMemoryError)  # torch has no type for it there
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        *((error, True) for error in OUT_OF_MEMORY),
        (RuntimeError("The size of tensor a (3) must match"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_only_that(error: Exception, said: bool) -> None:
    assert is_out_of_memory(error) == said


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_it_is_told_as_one_sentence(error: Exception) -> None:
    with pytest.raises(ModelError, match=r"^too large$") as told, fitting("too large"):
        raise error
    assert told.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("a shape"), ModelError("a rule"), KeyError("a")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as told, fitting("too large"):
        raise error
    assert told.value is error
