"""How a study is searched: what is typed of it, checked, and what of that its results depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vflowopt_search.errors import StudyError

if TYPE_CHECKING:
    from vflowopt_search.sampling import SamplerName


@dataclass(frozen=True)
class StudySettings:
    """How to search.

    Args:
        name: of the study in its storage, and of the strategy that it exports.
        retain: share of visual tokens alive, averaged over decoder layers, in (0, 1).
        trials: how many trials the study has in the end, over all runs.
        seed: of everything random; the same seed on the same machine gives the same study.
        racing: stop a trial that is surely worse than the best before all samples are measured.
        sampler: `tpe`; `gp` for few, full measurements (parameters that not every trial has are
            drawn at random); `tpe-multivariate` and `random` for comparison.
        trials_per_batch: how many trials are drawn before any of them is measured, and then
            measured together; this fills a GPU with a small model.

    Raises:
        StudyError: a value is out of range.
    """

    name: str
    retain: float
    trials: int
    seed: int = 0
    racing: bool = True
    sampler: SamplerName = "tpe"
    trials_per_batch: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.retain <= 1:
            raise StudyError(f"retain is {self.retain} but must be in (0, 1); change it")
        if self.retain == 1:
            raise StudyError(
                "retain is 1, which keeps everything, so that there is nothing to search; give a "
                "share below 1"
            )
        if self.trials < 1:
            raise StudyError(f"trials is {self.trials} but must be at least 1; ask for more")
        if self.seed < 0:
            raise StudyError(f"seed is {self.seed} but must not be negative; give another")
        if self.trials_per_batch < 1:
            raise StudyError(
                f"trials_per_batch is {self.trials_per_batch} but must be at least 1; 1 measures "
                f"one strategy at a time"
            )

    def context(self) -> dict[str, str]:
        """What a study's results depend on; the number of trials is not part of it."""
        return {
            "retain": repr(self.retain),
            "seed": str(self.seed),
            "racing": str(self.racing),
            "sampler": self.sampler,
            "trials_per_batch": str(self.trials_per_batch),
        }
