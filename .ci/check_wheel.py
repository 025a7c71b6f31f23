"""Check that a built wheel carries what the package reads at run time, and stays small.

Example: python .ci/check_wheel.py build/wheel/vflowopt_search-0.1.0-py3-none-any.whl
"""

from __future__ import annotations

import sys
from pathlib import Path
from zipfile import ZipFile

LARGEST = 15_000_000  # bytes
REQUIRED = (
    "vflowopt_search/py.typed",
    "vflowopt_search/data/search_spaces/vflowopt.yaml",
    "vflowopt_search/data/search_spaces/vflowopt-published.yaml",
    "vflowopt_search/data/search_spaces/keep-ratios-only.yaml",
    "vflowopt_search/data/studies/quickstart.yaml",
    "vflowopt_search/testbed/data/digits.npz",
)


def complaints(wheel: Path) -> list[str]:
    """One sentence for every thing that is wrong with this wheel."""
    names = ZipFile(wheel).namelist()
    found = [f"{wheel.name} lacks {name}" for name in REQUIRED if name not in names]
    if not any(name.endswith(".safetensors") for name in names):
        found.append(f"{wheel.name} lacks the weights of the shipped model")
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        found.append(f"{wheel.name} lacks the licence")
    strangers = [n for n in names if n.startswith(("tests/", "runs/")) or "__pycache__" in n]
    found += [f"{wheel.name} carries {name}, which belongs to the checkout" for name in strangers]
    if wheel.stat().st_size > LARGEST:
        found.append(f"{wheel.name} has {wheel.stat().st_size:,} bytes, more than {LARGEST:,}")
    return found


if __name__ == "__main__":
    wheel = Path(sys.argv[1])
    sentences = complaints(wheel)
    print("\n".join(sentences) or f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, complete")
    sys.exit(bool(sentences))
