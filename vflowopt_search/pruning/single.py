"""One strategy in every forward of a model, and in the decode steps after it.

Shape suffixes: B = batch rows, S = unpruned sequence, K = tokens left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor

from vflowopt_search.pruning.anatomy import Anatomy
from vflowopt_search.pruning.engine import Engine
from vflowopt_search.pruning.positions import packed
from vflowopt_search.pruning.prefill import Prefill
from vflowopt_search.pruning.record import Applied
from vflowopt_search.pruning.scoring import Scoring
from vflowopt_search.pruning.state import Segment
from vflowopt_search.strategy import Strategy


class PruningEngine(Engine):
    """One strategy on one model.

    Attributes:
        until_removed: what keeps the strategy on without a `with` block, None inside of one.
    """

    scoring: Scoring
    until_removed: ExitStack | None = None

    def __init__(self, anatomy: Anatomy, strategy: Strategy, applied: Applied) -> None:
        self.strategy, self.applied = strategy, applied
        later_layers = {s.layer: k for k, s in enumerate(strategy.stages) if s.layer > 0}
        super().__init__(anatomy, Scoring(anatomy, strategy), later_layers)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Prune inside the `with` block; then `applied` holds nothing of the model."""
        with super().attached():
            yield
        self.applied.freeze()

    def prefill(self, kinds: Mapping[str, Tensor], valid_BS: Tensor) -> Prefill:
        """Begin to prune a batch of prompts; `applied` tells of it."""
        prefill = Prefill(self.strategy, self.scoring, kinds, valid_BS)
        self.applied.watch(prefill.reader(len(self.anatomy.decoder_layers)))
        return prefill

    def positions(self, ids_BK: Tensor, first: Segment) -> tuple[Tensor, Tensor | None]:
        """The original positions, or consecutive ones."""
        return packed(ids_BK, first) if self.strategy.positions == "packed" else (ids_BK, None)
