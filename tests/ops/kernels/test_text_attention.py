from __future__ import annotations

import pytest
import torch

from tests.ops.kernels.memory import DEVICE, DTYPES, assert_twins, framed, poisoned
from vflowopt_search.ops import attention as definition
from vflowopt_search.ops.kernels import text_attention as kernel

BATCH = 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "keys", "width"),
    [((1, 1), 1, 5), ((14, 2), 65, 72), ((4, 4), 130, 16), ((18, 1), 64, 128)],
)
@pytest.mark.parametrize("padded", [False, True])
def test_text_attention_is_the_definitions(
    heads: tuple[int, int], keys: int, width: int, dtype: torch.dtype, padded: bool
) -> None:
    generator = torch.Generator().manual_seed(keys)
    query_BHD = torch.randn(BATCH, heads[0], width, generator=generator).to(DEVICE, dtype) * 3
    key_BHND = torch.randn(BATCH, heads[1], keys, width, generator=generator).to(DEVICE, dtype)
    valid_BN = (torch.rand(BATCH, keys, generator=generator) > 0.4).to(DEVICE)
    valid_BN[:, -1] = True
    arguments = (framed(query_BHD), framed(key_BHND), 0.4, framed(valid_BN) if padded else None)
    with poisoned():
        seen_BN = kernel.text_attention(*arguments)
    assert_twins(seen_BN, definition.text_attention(*arguments))


def test_whole_blocks_of_padding_get_nothing() -> None:
    query_BHD = torch.randn(1, 2, 16, device=DEVICE)
    key_BHND = torch.randn(1, 2, 3 * kernel.BLOCK_N, 16, device=DEVICE)
    valid_BN = torch.zeros(1, 3 * kernel.BLOCK_N, dtype=torch.bool, device=DEVICE)
    valid_BN[:, -2:] = True
    with poisoned():
        seen_BN = kernel.text_attention(query_BHD, key_BHND, 0.4, valid_BN)
    assert seen_BN[:, :-2].tolist() == [[0] * (3 * kernel.BLOCK_N - 2)]
    assert_twins(seen_BN, definition.text_attention(query_BHD, key_BHND, 0.4, valid_BN))
