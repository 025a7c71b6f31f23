from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KERNELS = {
    "_patch_entropy",
    "_log_sums",
    "_column_sums",
    "_logits",
    "_shares",
    "_list_members",
    "_sum_members",
    "_select_tokens",
}
# Of an RTX 3090 or 4090, an L4 or an L40: the least among the GPUs that have kernels.
LEAST_SHARED_MEMORY = 99 * 1024


def test_every_kernel_compiles_for_real_gpus(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.kernels.compile_for"],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in lines} == KERNELS
    assert max(int(shared) for _, shared in lines) <= LEAST_SHARED_MEMORY
