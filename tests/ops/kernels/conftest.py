"""Lets Triton's interpreter multiply in bf16; without Triton there is nothing to test here."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

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
