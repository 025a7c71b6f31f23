"""How running out of memory looks, on a GPU and on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vflowopt_search.errors import ModelError

_ON_A_CPU = "can't allocate memory"  # torch has no type for it there


def is_out_of_memory(error: BaseException) -> bool:
    """Whether something failed because memory ran out, and would do with less of it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _ON_A_CPU in str(error)


@contextmanager
def fitting(sentence: str) -> Iterator[None]:
    """Inside the `with` block, running out of memory is told as one sentence.

    Raises:
        ModelError: memory ran out; every other error passes as it is.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(sentence) from error
