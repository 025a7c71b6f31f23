"""The families' tiny models, made once and shared: no test leaves a trace on them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import BatchFeature

from tests.families import all_families, tiny
from vflowopt_search.adapters.registry import ADAPTERS

NAMES = [name for name, family in all_families().items() if family.model_type in ADAPTERS]
every_family = pytest.mark.parametrize("name", NAMES)


@cache
def model_of(name: str, attn: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """The tiny model of a variant."""
    return tiny(name).model(attn=attn, dtype=dtype)


def inputs_of(name: str, dtype: torch.dtype = torch.float32) -> BatchFeature:
    """Its three ragged prompts."""
    return tiny(name).inputs(dtype)
