"""Measure every op as kernel, as definition and the eager way, beside what bounds it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vflowopt_search.ops import attention, dispatch, entropy, merge, select
from vflowopt_search.ops.bench import eager
from vflowopt_search.ops.bench.cases import SMALL, Case, Sizes, cases
from vflowopt_search.ops.bench.rows import Row, append, row, setup_of
from vflowopt_search.ops.bench.timing import Ceilings, bound, ceilings, times

DEFINITIONS = {
    "patch_entropy": entropy,
    "attention_received": attention,
    "text_attention": attention,
    "merge_tokens": merge,
    "select_tokens": select,
}
NO_GPU = "this machine has no GPU to measure; `--cpu` tries the program on the definitions alone"
NO_KERNELS = (
    "the kernels need Triton and a GPU of compute capability 8.0 or higher; "
    "install triton, or measure on a newer GPU"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the rows and, on a GPU, keep them."""
    parser = argparse.ArgumentParser(
        prog="python -m vflowopt_search.ops.bench", description=__doc__
    )
    parser.add_argument("--cpu", action="store_true", help="small definitions, nothing kept")
    parser.add_argument("--out", type=Path, default=Path("studies/kernels.csv"), help="the table")
    chosen = parser.parse_args(arguments)
    if chosen.cpu:
        measure(SMALL, torch.device("cpu"), repetitions=3)
        return
    if not torch.cuda.is_available():
        sys.exit(NO_GPU)
    device = torch.device("cuda", torch.cuda.current_device())
    if dispatch.kernels_on(device) is None:
        sys.exit(NO_KERNELS)
    append(chosen.out, setup_of(device), measure(Sizes(), device))
    print(f"added to {chosen.out}")


def measure(sizes: Sizes, device: torch.device, **options: int) -> list[Row]:
    """Rows of all cases, printed as they come."""
    card = ceilings(device)
    print(f"{setup_of(device)}\n{card}")
    rows = []
    for make in cases(sizes, device):
        case = make()
        bound_ms = times(bound(case, device), device, **options).p50
        if device.type == "cuda":
            refuse_a_wrong_kernel(case)
        for way, op in ways(case, device).items():
            rows.append(_measured(case, way, op, (bound_ms, card), device, options))
            print(rows[-1], flush=True)
    return rows


def ways(case: Case, device: torch.device) -> dict[str, Callable[..., Any]]:
    """The ways to compute an op; on a CPU there is no kernel and nothing eager."""
    definition = {"definition": getattr(DEFINITIONS[case.op], case.op)}
    if device.type == "cpu":
        return definition
    return {
        "kernel": getattr(dispatch, case.op),
        **definition,
        "eager": getattr(eager, case.op),
    }


def refuse_a_wrong_kernel(case: Case) -> None:
    """No time is worth anything while the answer is another than the definition's."""
    expected = getattr(DEFINITIONS[case.op], case.op)(*case.arguments)
    answer = getattr(dispatch, case.op)(*case.arguments)
    tensor = expected if isinstance(expected, torch.Tensor) else expected[0]
    rtol = max(1e-4, torch.finfo(tensor.dtype).eps)
    # Attention over N keys is 1 / N on average: an absolute slack of its own size would hide all.
    atol = 1e-6 if case.map_bytes is None else 1e-3 / tensor.shape[-1]
    torch.testing.assert_close(answer, expected, rtol=rtol, atol=atol)


def _measured(
    case: Case,
    way: str,
    op: Callable[..., Any],
    bounds: tuple[float, Ceilings],
    device: torch.device,
    options: dict[str, int],
) -> Row:
    try:
        taken = times(lambda: op(*case.arguments), device, **options)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return row(case, way, None, *bounds)
    return row(case, way, taken, *bounds)


if __name__ == "__main__":
    main()
