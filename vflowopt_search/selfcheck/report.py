"""What a self-check found: one row per property, each a figure and the most that it may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vflowopt_search.errors import UnsupportedError


@dataclass(frozen=True)
class Check:
    """One property of a pruned model.

    Attributes:
        name: what was compared or counted.
        figure: what came out; nan is never good enough.
        limit: the most that it may be.
    """

    name: str
    figure: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the figure is within the limit; nan is not."""
        return self.figure <= self.limit


@dataclass(frozen=True)
class Report:
    """All checks of one model.

    Attributes:
        model_type: `config.model_type`.
        adapter: name of the class that served the model.
        inputs: where the prompts came from, in words.
        device: where it lies.
        dtype: its precision, as `bfloat16`.
        checks: in the order in which they were made.
    """

    model_type: str
    adapter: str
    inputs: str
    device: str
    dtype: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def require(self) -> None:
        """Raise UnsupportedError, naming the first check that failed, unless all passed."""
        failed = next((check for check in self.checks if not check.passed), None)
        if failed is None:
            return
        raise UnsupportedError(
            f"this {self.model_type} model fails the self-check {failed.name!r}: "
            f"{failed.figure:.3g}, where at most {failed.limit:.3g} is right, so that it would be "
            "pruned wrongly; run `vflowopt-search doctor MODEL` for all checks, and try another "
            "version of transformers"
        )

    def to_plain(self) -> dict[str, Any]:
        """For JSON, which has neither nan nor infinity: such a figure is null."""
        return {
            "model_type": self.model_type,
            "adapter": self.adapter,
            "inputs": self.inputs,
            "device": self.device,
            "dtype": self.dtype,
            "passed": self.passed,
            "checks": [
                {
                    "check": check.name,
                    "figure": check.figure if math.isfinite(check.figure) else None,
                    "limit": check.limit if math.isfinite(check.limit) else None,
                    "passed": check.passed,
                }
                for check in self.checks
            ],
        }
