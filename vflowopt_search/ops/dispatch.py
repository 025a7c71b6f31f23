"""The definitions of `ops`, computed by their Triton twins where these are faster.

On the CPU these are the definitions. On a GPU the kernels answer, unless Triton cannot be
imported or cannot launch, the GPU is too old for it, the dtype is not fp32, bf16 or fp16, or a
gradient is wanted: then the definitions answer there too. What the functions mean is said at their
definitions.

Shape suffixes: as there.
"""

from __future__ import annotations

from functools import cache
from subprocess import SubprocessError
from types import SimpleNamespace

import torch
from torch import Tensor

from vflowopt_search.ops import attention, entropy, merge, select
from vflowopt_search.ops.select import Tokens

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_CAPABILITY = (8, 0)  # Ampere: the first with products in bf16


def patch_entropy(gray_NK: Tensor) -> Tensor:
    """`ops.entropy.patch_entropy`."""
    if gray_NK.is_cuda and (kernels := kernels_on(gray_NK.device)):
        with torch.cuda.device(gray_NK.device):
            entropy_N: Tensor = kernels.patch_entropy(gray_NK)
            return entropy_N
    return entropy.patch_entropy(gray_NK)


def attention_received(
    query_BHQD: Tensor,
    key_BHND: Tensor,
    scale: float,
    query_weight_BQ: Tensor | None = None,
    window_N: Tensor | None = None,
) -> Tensor:
    """`ops.attention.attention_received`."""
    arguments = (query_BHQD, key_BHND, scale, query_weight_BQ, window_N)
    if query_BHQD.is_cuda and (kernels := _kernels_for((query_BHQD, key_BHND), query_weight_BQ)):
        with torch.cuda.device(query_BHQD.device):
            received_BN: Tensor = kernels.attention_received(*arguments)
            return received_BN
    return attention.attention_received(*arguments)


def text_attention(
    query_BHD: Tensor, key_BHND: Tensor, scale: float, valid_BN: Tensor | None = None
) -> Tensor:
    """`ops.attention.text_attention`."""
    if query_BHD.is_cuda and (kernels := _kernels_for((query_BHD, key_BHND))):
        with torch.cuda.device(query_BHD.device):
            seen_BN: Tensor = kernels.text_attention(query_BHD, key_BHND, scale, valid_BN)
            return seen_BN
    return attention.text_attention(query_BHD, key_BHND, scale, valid_BN)


def merge_tokens(features_ND: Tensor, weight_N: Tensor, group_N: Tensor, num_groups: int) -> Tensor:
    """`ops.merge.merge_tokens`."""
    if features_ND.is_cuda and (kernels := _kernels_for((features_ND,), weight_N)):
        with torch.cuda.device(features_ND.device):
            merged_GD: Tensor = kernels.merge_tokens(features_ND, weight_N, group_N, num_groups)
            return merged_GD
    return merge.merge_tokens(features_ND, weight_N, group_N, num_groups)


def select_tokens(tokens: Tokens, index_BK: Tensor) -> Tokens:
    """`ops.select.select_tokens`."""
    if tokens.hidden_BND.is_cuda and (kernels := _kernels_for((tokens.hidden_BND,))):
        with torch.cuda.device(tokens.hidden_BND.device):
            kept: Tokens = kernels.select_tokens(tokens, index_BK)
            return kept
    return select.select_tokens(tokens, index_BK)


def _kernels_for(
    values: tuple[Tensor, ...], weight: Tensor | None = None
) -> SimpleNamespace | None:
    """The kernels, if they can take these values, all of one dtype, and weights of any."""
    if values[0].dtype not in KERNEL_DTYPES or len({value.dtype for value in values}) > 1:
        return None
    if weight is not None:
        if weight.dtype == torch.float64:
            return None
        values = (*values, weight)
    if torch.is_grad_enabled() and any(value.requires_grad for value in values):
        return None
    return kernels_on(values[0].device)


@cache
def kernels_on(device: torch.device) -> SimpleNamespace | None:
    """The kernels as attributes, imported when a GPU first asks for them; None without Triton."""
    if why_no_kernels(device) is not None:
        return None
    from vflowopt_search.ops.kernels.entropy import patch_entropy
    from vflowopt_search.ops.kernels.merge import merge_tokens
    from vflowopt_search.ops.kernels.received_attention import attention_received
    from vflowopt_search.ops.kernels.select import select_tokens
    from vflowopt_search.ops.kernels.text_attention import text_attention

    return SimpleNamespace(
        patch_entropy=patch_entropy,
        attention_received=attention_received,
        text_attention=text_attention,
        merge_tokens=merge_tokens,
        select_tokens=select_tokens,
    )


@cache
def why_no_kernels(device: torch.device) -> str | None:
    """Why the definitions answer on a GPU in place of the kernels; None where the kernels do."""
    if torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return f"older than compute capability {'.'.join(map(str, OLDEST_CAPABILITY))}"
    try:
        _launch_one(device)
    # Triton imports without a C compiler or Python's headers, which it needs at its first launch
    except (ImportError, RuntimeError, OSError, SubprocessError) as error:
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return None


def _launch_one(device: torch.device) -> None:
    """Compile and launch the smallest kernel."""
    from vflowopt_search.ops.kernels.entropy import patch_entropy

    with torch.cuda.device(device):
        patch_entropy(torch.zeros(1, 1, dtype=torch.uint8, device=device))
