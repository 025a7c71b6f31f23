"""Training a pruned model: labels are shortened together with the tokens.

Shape suffixes: B = batch rows, S = unpruned sequence, K = tokens left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vflowopt_search.pruning.state import PrunedState

IGNORED = -100
"""The label that transformers' losses leave out."""


class Labels:
    """Labels (and the mask beside them) that take the sequence's shape once it is known.

    A model computes its loss from logits and labels after the backbone has run; both families'
    own loss code and `num_items_in_batch` stay as they are, because the very tensors that the
    model was given change, which are copies of the caller's.
    """

    def __init__(self, labels_BS: Tensor, mask_BS: Any) -> None:
        self.labels_BS = labels_BS.clone()
        two_dimensional = isinstance(mask_BS, Tensor) and mask_BS.dim() == 2
        self.mask_BS = mask_BS.clone() if two_dimensional else None

    def arguments(self) -> dict[str, Tensor]:
        """What the model is called with in place of the caller's tensors."""
        mask = {} if self.mask_BS is None else {"attention_mask": self.mask_BS}
        return {"labels": self.labels_BS} | mask

    def follow(self, state: PrunedState) -> None:
        """Leave the labels of the tokens that came out of the last layer, in place.

        A row's first token is not to be predicted: where others are longer, padding precedes it.
        """
        if not state.shortened and len(state.segments) == 1:
            return
        index_BK = state.segments[-1].index_BK.to(self.labels_BS.device)
        valid_BK = state.segments[-1].valid_BK.to(self.labels_BS.device)
        learned_BK = valid_BK & (valid_BK.cumsum(1) > 1)
        self.labels_BS.data = torch.where(learned_BK, self.labels_BS.gather(1, index_BK), IGNORED)
        if self.mask_BS is not None:
            self.mask_BS.data = valid_BK.to(self.mask_BS.dtype)
