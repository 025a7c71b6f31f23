"""Sums and softmaxes are taken in fp32 at least, whatever the model's dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(values: Tensor) -> Tensor:
    """`values` in fp32, or in fp64 where they are fp64 already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
