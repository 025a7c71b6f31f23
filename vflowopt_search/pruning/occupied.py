"""Whether a strategy is on a model already: two engines on one model would prune twice."""

from __future__ import annotations

from torch import nn

from vflowopt_search.errors import UnsupportedError

ENGINE = "_vflowopt_engine"


def refuse_if_pruned(model: nn.Module) -> None:
    """Raise UnsupportedError while a strategy is on this model."""
    if getattr(model, ENGINE, None) is not None:
        raise UnsupportedError(
            "this model is pruned already; leave the `with pruned(...)` block or call "
            "handle.remove() first"
        )
