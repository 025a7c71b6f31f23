"""One more process of a search: loads what the first one prepared, and runs trials beside it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vflowopt_search.cli.console import quiet_libraries
from vflowopt_search.cli.interrupted import INTERRUPTED
from vflowopt_search.cli.preparation import prepare
from vflowopt_search.cli.running import run_trials
from vflowopt_search.errors import VFlowOptError
from vflowopt_search.workers import task

if TYPE_CHECKING:
    from vflowopt_search.outcome import TrialReport


class Silent:
    """A display that shows nothing: the first process tells how the study goes."""

    def phase(self, text: str, total: int | None = None) -> None:
        """A new part of the work begins."""

    def step(self, done: int, total: int) -> None:
        """So many steps of the phase are done."""

    def trial(self, report: TrialReport) -> None:
        """A trial ended."""


def main() -> int:
    """Do the job that stdin holds until stdin ends; the exit code, as of the program."""
    job = task()
    quiet_libraries()
    try:
        run_trials(job, prepare(job, Silent()), Silent())
    except KeyboardInterrupt:
        return INTERRUPTED
    except VFlowOptError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
