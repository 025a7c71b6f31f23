"""How running out of memory looks, on a GPU and on a CPU."""

from __future__ import annotations

import torch

_ON_A_CPU = "can't allocate memory"  # torch has no type for it there


def is_out_of_memory(error: BaseException) -> bool:
    """Whether something failed because memory ran out, and would do with less of it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _ON_A_CPU in str(error)
