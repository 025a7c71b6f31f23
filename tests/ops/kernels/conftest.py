"""Makes Triton's interpreter multiply in bf16 and watch addresses; without Triton, no tests."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from torch import Tensor

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]


@pytest.fixture(autouse=True)
def dot_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widen bf16 operands, as the hardware does.

    The interpreter of Triton 3.9 keeps bf16 as bits in uint16, and its dot multiplies these bits.
    """
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    narrow_dot = InterpreterBuilder.create_dot

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16 or operand.data.dtype != np.uint16:
            return operand
        bits = operand.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def dot(self: Any, left: Any, right: Any, *rest: Any) -> Any:
        return narrow_dot(self, widened(left), widened(right), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


@pytest.fixture(autouse=True)
def every_address_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a kernel reads or writes beside its tensors, even if nothing comes of it."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    spans: list[tuple[int, int]] = []
    launch = GridExecutor.__call__

    def launch_within(self: Any, *args: Any, **kwargs: Any) -> Any:
        storages = [arg.untyped_storage() for arg in args if isinstance(arg, Tensor)]
        spans[:] = [(one.data_ptr(), one.data_ptr() + one.nbytes()) for one in storages]
        return launch(self, *args, **kwargs)

    def watched(access: Any, mask_at: int) -> Any:
        def inside(self: Any, pointers: Any, *rest: Any) -> Any:
            address = pointers.data[rest[mask_at].data]
            known = np.zeros(address.shape, dtype=bool)
            for low, high in spans:
                known |= (address >= low) & (address < high)
            assert known.all(), "the kernel left its tensors"
            return access(self, pointers, *rest)

        return inside

    monkeypatch.setattr(GridExecutor, "__call__", launch_within)
    for name, mask_at in (("create_masked_load", 0), ("create_masked_store", 1)):
        access = getattr(InterpreterBuilder, name)
        monkeypatch.setattr(InterpreterBuilder, name, watched(access, mask_at))
