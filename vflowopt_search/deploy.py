"""A strategy file at work on a loaded model.

with pruned(model, Strategy.load("strategy.json")) as applied:
    ids = model.generate(**inputs)
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import nn

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.registry import adapter_for, identity_of
from vflowopt_search.budget import check_claim
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.pruning.engine import Engine
from vflowopt_search.pruning.mixed import MixedEngine
from vflowopt_search.pruning.occupied import ENGINE, refuse_if_pruned
from vflowopt_search.pruning.record import Applied, LastPrefill
from vflowopt_search.pruning.single import PruningEngine
from vflowopt_search.selfcheck.check import require_checked
from vflowopt_search.strategy import Strategy
from vflowopt_search.strategy_hub import find_strategy, strategy_beside


@contextmanager
def pruned(
    model: nn.Module,
    strategy: Strategy | str | Path | None = None,
    *,
    revision: str | None = None,
) -> Iterator[Applied]:
    """Prune visual tokens in every forward and `generate` of `model` inside the `with` block.

    The model is the caller's own, from transformers, unchanged; when the block ends, also by an
    exception, it is bit-identical to before.

    A model that was compiled runs eagerly meanwhile, for its graphs have no hooks; and so does all
    that `torch.compile` made in this process, since torch cannot tell what of it holds the model.
    What certainly does not may run compiled inside `torch.compiler.set_stance("default")`.

    Args:
        model: a loaded model of a supported family, on any device.
        strategy: a strategy, or where it is: a file, a folder that holds `vflowopt_strategy.json`,
            a hub repository; None for the one saved beside the checkpoint of `model`.
        revision: branch, tag or commit of the hub repository; name it where the model was loaded
            at one, for the newest transformers do not remember it.

    Yields:
        What was applied: `applied.last` tells of the last prompt, per sample and layer.

    Raises:
        StrategyError: the file is wrong, or belongs to another model.
        UnsupportedError: the model cannot do what the strategy asks, or is pruned already.
    """
    with attached_engine(model, strategy, revision) as engine:
        yield engine.applied


@contextmanager
def attached_engine(
    model: nn.Module,
    strategy: Strategy | str | Path | None = None,
    revision: str | None = None,
) -> Iterator[PruningEngine]:
    """As `pruned`, but yields the engine itself, for callers that bring their own signals."""
    if strategy is None:
        strategy = strategy_beside(getattr(model, "_orig_mod", model), revision=revision)
    elif not isinstance(strategy, Strategy):
        strategy = find_strategy(strategy, revision=revision)
    engine = PruningEngine(_ready(model, [strategy]), strategy, Applied())
    with _attached(engine):
        yield engine


@contextmanager
def attached_together(model: nn.Module, strategies: Sequence[Strategy]) -> Iterator[MixedEngine]:
    """As `attached_engine`, with rows of several strategies in one batch; nothing is generated."""
    engine = MixedEngine(_ready(model, strategies), strategies)
    with _attached(engine):
        yield engine


@contextmanager
def _attached(engine: Engine) -> Iterator[None]:
    """Hooks on, and the model marked as pruned, inside the `with` block."""
    model = engine.anatomy.model
    with engine.attached():
        object.__setattr__(model, ENGINE, engine)
        try:
            yield
        finally:
            object.__delattr__(model, ENGINE)


class Handle:
    """A strategy applied without a `with` block; `remove` takes it off again.

    The model keeps its strategy on, whether or not anybody holds the handle. A model that nobody
    holds any more goes with its strategy.
    """

    def __init__(self, engine: PruningEngine, stack: ExitStack) -> None:
        """A handle on the `engine` that is attached until `stack` is closed."""
        self._stack, self._applied = stack, engine.applied
        engine.until_removed = stack
        # a program that ends without taking it off must not have it fall off while Python closes
        self._at_exit = weakref.finalize(engine, _close, weakref.ref(stack))

    @property
    def last(self) -> LastPrefill | None:
        """What happened in the last prefill, as `Applied.last`."""
        return self._applied.last

    def remove(self) -> None:
        """Take the strategy off the model; a second call does nothing."""
        self._at_exit.detach()
        self._stack.close()


def _close(stack: weakref.ref[ExitStack]) -> None:
    """Take a strategy off if its model is still there."""
    alive = stack()
    if alive is not None:
        alive.close()


def prune(
    model: nn.Module,
    strategy: Strategy | str | Path | None = None,
    *,
    revision: str | None = None,
) -> Handle:
    """Apply a strategy until `handle.remove()` is called.

    The model keeps it on, also where the handle is dropped. All that `torch.compile` made runs
    eagerly until then, as in `pruned`.

    Args:
        model: as in `pruned`.
        strategy: as in `pruned`.
        revision: as in `pruned`.

    Returns:
        A handle; `handle.last` tells of the last prompt, per sample and layer.

    Raises:
        StrategyError: the file is wrong, or belongs to another model.
        UnsupportedError: the model cannot do what the strategy asks, or is pruned already.
    """
    with ExitStack() as stack:
        engine = stack.enter_context(attached_engine(model, strategy, revision))
        return Handle(engine, stack.pop_all())


def _ready(model: nn.Module, strategies: Sequence[Strategy]) -> Adapter:
    """The model's adapter, once it is clear that all of this can be done on it."""
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper and it are one model
    identity = identity_of(model)
    for strategy in strategies:
        strategy.check_fits(identity)
        check_claim(strategy, identity.decoder_layers)
    refuse_if_pruned(model)
    adapter = adapter_for(model)
    for strategy in strategies:
        _check(adapter, strategy)
    require_checked(adapter)
    return adapter


def _check(adapter: Adapter, strategy: Strategy) -> None:
    """Raise UnsupportedError where a strategy asks for what a model cannot do."""
    wanted = {stage.score or strategy.importance.score for stage in strategy.stages}
    missing = sorted(wanted - set(adapter.family.scores))
    if missing:
        raise UnsupportedError(
            f"the strategy scores by {missing[0]}, which {adapter.model_type} models do not "
            f"offer; they offer {', '.join(adapter.family.scores)}"
        )
    if strategy.positions not in adapter.family.positions:
        raise UnsupportedError(
            f"the strategy sets positions {strategy.positions!r}, but {adapter.model_type} models "
            f"offer {', '.join(adapter.family.positions)}"
        )
    layer = strategy.importance.vision_layer
    if "received_attention" in wanted and layer is not None and layer not in adapter.vision_layers:
        raise UnsupportedError(
            f"the strategy reads vision layer {layer}, which in this {adapter.model_type} model "
            f"does not attend to the whole image; use one of "
            f"{', '.join(map(str, adapter.vision_layers))}"
        )
    if not adapter.knows_grid:
        _refuse_grids(strategy, adapter.model_type)


def _refuse_grids(strategy: Strategy, model_type: str) -> None:
    """Raise UnsupportedError for what needs to know where tokens lie on their image."""
    asked = {
        "recycles tokens by grid cell": strategy.recycling is not None,
        "weighs the entropy of patches": strategy.importance.entropy_weight != 0,
    }
    for what, wanted in asked.items():
        if wanted:
            raise UnsupportedError(
                f"the strategy {what}, but where the tokens of {model_type} models lie on their "
                f"image is not known; leave that out, or write an adapter (CONTRIBUTING.md)"
            )
