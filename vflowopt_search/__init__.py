"""Search which visual tokens a multimodal model can drop, and deploy what was found.

Public are the names in `__all__`, and whatever the modules in `PUBLIC_MODULES` define under a name
without a leading underscore. Everything else may change without notice.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vflowopt_search.baselines import baseline_strategies as baseline_strategies
    from vflowopt_search.calibration.choice import from_dataset as from_dataset
    from vflowopt_search.calibration.choice import load_calibration as load_calibration
    from vflowopt_search.calibration.encoding import encode as encode
    from vflowopt_search.deploy import prune as prune
    from vflowopt_search.deploy import pruned as pruned
    from vflowopt_search.objective import build_objective as build_objective
    from vflowopt_search.report.draw import draw_sample as draw_sample
    from vflowopt_search.report.draw import draw_strategies as draw_strategies
    from vflowopt_search.report.page import write_report as write_report
    from vflowopt_search.report.runs import Run as Run
    from vflowopt_search.report.runs import load_run as load_run
    from vflowopt_search.strategy import Strategy as Strategy
    from vflowopt_search.strategy_hub import pull_strategy as pull_strategy
    from vflowopt_search.strategy_hub import push_strategy as push_strategy
    from vflowopt_search.study import search as search

__version__ = "0.1.0"

PUBLIC_MODULES = (
    "vflowopt_search.calibration",
    "vflowopt_search.errors",
    "vflowopt_search.model_source",
    "vflowopt_search.report.facts",
    "vflowopt_search.report.figures",
    "vflowopt_search.report.frames",
    "vflowopt_search.report.landscape",
    "vflowopt_search.report.landscape_figures",
    "vflowopt_search.report.overlay",
    "vflowopt_search.report.several",
    "vflowopt_search.report.words",
    "vflowopt_search.resources",
    "vflowopt_search.run_folder",
    "vflowopt_search.strategy",
    "vflowopt_search.testbed",
    "vflowopt_search.testbed.data",
)
"""Modules to import from besides the package itself: records and figures of a study, the parts of
a strategy, errors, file names, how models are loaded, and the bundled model with its data."""
_HOME = {
    "Run": "vflowopt_search.report.runs",
    "Strategy": "vflowopt_search.strategy",
    "baseline_strategies": "vflowopt_search.baselines",
    "build_objective": "vflowopt_search.objective",
    "draw_sample": "vflowopt_search.report.draw",
    "draw_strategies": "vflowopt_search.report.draw",
    "encode": "vflowopt_search.calibration.encoding",
    "from_dataset": "vflowopt_search.calibration.choice",
    "load_calibration": "vflowopt_search.calibration.choice",
    "load_run": "vflowopt_search.report.runs",
    "prune": "vflowopt_search.deploy",
    "pruned": "vflowopt_search.deploy",
    "pull_strategy": "vflowopt_search.strategy_hub",
    "push_strategy": "vflowopt_search.strategy_hub",
    "search": "vflowopt_search.study",
    "write_report": "vflowopt_search.report.page",
}
__all__ = [
    "Run",
    "Strategy",
    "__version__",
    "baseline_strategies",
    "build_objective",
    "draw_sample",
    "draw_strategies",
    "encode",
    "from_dataset",
    "load_calibration",
    "load_run",
    "prune",
    "pruned",
    "pull_strategy",
    "push_strategy",
    "search",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that importing the package is light."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
