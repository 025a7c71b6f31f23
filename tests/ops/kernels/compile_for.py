"""Compile every kernel for GPUs that are not there, by the wrappers' own launches.

`python -m tests.ops.kernels.compile_for` prints one line per kernel and specialisation: its name
and its bytes of shared memory. The interpreter allows what the compiler refuses; this finds out
before a GPU does. A process of its own, because Triton is either interpreted or compiled from its
first import on.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from vflowopt_search.ops.kernels.entropy import patch_entropy
from vflowopt_search.ops.kernels.merge import merge_tokens
from vflowopt_search.ops.kernels.received_attention import attention_received
from vflowopt_search.ops.kernels.select import select_tokens
from vflowopt_search.ops.kernels.text_attention import text_attention
from vflowopt_search.ops.select import Tokens


class AbsentDriver:
    """Knows what to compile for, and has nothing to launch on."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return int(self.target.arch)  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    """Stands in for the launch: compile and say what came out."""
    compiled = RUN(kernel, *args, grid=grid, warmup=True, **options)
    print(kernel.__name__, compiled.metadata.shared, flush=True)


RUN = JITFunction.run


def launch_all(dtype: torch.dtype, width: int) -> None:
    """Every wrapper once, on memory whose contents nobody looks at."""
    query_BHQD = torch.zeros(2, 8, 40, width, dtype=dtype)
    key_BHND = torch.zeros(2, 2, 40, width, dtype=dtype)
    valid_BN = torch.ones(2, 40, dtype=torch.bool)
    number_N = torch.arange(40)
    patch_entropy(torch.zeros(3, 196, dtype=torch.uint8))
    attention_received(query_BHQD, key_BHND, 0.1)
    attention_received(query_BHQD, key_BHND, 0.1, valid_BN, number_N)
    text_attention(query_BHQD[:, :, -1], key_BHND, 0.1)
    text_attention(query_BHQD[:, :, -1], key_BHND, 0.1, valid_BN)
    merge_tokens(key_BHND[0, 0], torch.ones(40), number_N, 40)
    select_tokens(Tokens(query_BHQD[0]), number_N.expand(8, -1))
    select_tokens(
        Tokens(key_BHND[0], torch.zeros(3, 2, 40, dtype=torch.int64), valid_BN),
        number_N.expand(2, -1),
    )


def launch_smallest(dtype: torch.dtype) -> None:
    """Every wrapper on sizes of 1, which the compiler takes for constants."""
    query_BHQD = torch.zeros(1, 1, 1, 1, dtype=dtype)
    valid_BN = torch.ones(1, 1, dtype=torch.bool)
    number_N = torch.zeros(1, dtype=torch.int64)
    patch_entropy(torch.zeros(1, 1, dtype=torch.uint8))
    attention_received(query_BHQD, query_BHQD, 1.0, valid_BN, number_N)
    text_attention(query_BHQD[:, :, 0], query_BHQD, 1.0, valid_BN)
    merge_tokens(query_BHQD[0, 0], torch.ones(1), number_N, 1)
    select_tokens(Tokens(query_BHQD[0], number_N.view(1, 1, 1), valid_BN), number_N[None])


def main() -> None:
    """Hopper and Ampere multiply by different instructions."""
    JITFunction.run = compile_only
    driver.set_active(AbsentDriver(90))
    launch_all(torch.bfloat16, 96)
    driver.set_active(AbsentDriver(80))
    launch_smallest(torch.float16)


if __name__ == "__main__":
    main()
