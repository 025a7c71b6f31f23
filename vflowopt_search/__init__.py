"""Search which visual tokens a multimodal model can drop, and deploy what was found."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vflowopt_search.deploy import prune as prune
    from vflowopt_search.deploy import pruned as pruned
    from vflowopt_search.strategy import Strategy as Strategy
    from vflowopt_search.strategy_hub import pull_strategy as pull_strategy
    from vflowopt_search.strategy_hub import push_strategy as push_strategy
    from vflowopt_search.study import search as search

__version__ = "0.1.0"
__all__ = [
    "Strategy",
    "__version__",
    "prune",
    "pruned",
    "pull_strategy",
    "push_strategy",
    "search",
]

_HOME = {
    "Strategy": "vflowopt_search.strategy",
    "prune": "vflowopt_search.deploy",
    "pruned": "vflowopt_search.deploy",
    "pull_strategy": "vflowopt_search.strategy_hub",
    "push_strategy": "vflowopt_search.strategy_hub",
    "search": "vflowopt_search.study",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that importing the package is light."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
