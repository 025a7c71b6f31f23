"""Forward pass of training: one image, many isolated questions, and what each patch shows.

Shape suffixes: B = images, T = tiles, P = patches of a tile, D = width, V = visual tokens,
L = text tokens, S = 1 + V + L.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaOnevisionForConditionalGeneration

from vflowopt_search.testbed.batches import IGNORED, NUM_DENSE_CLASSES, Batch
from vflowopt_search.testbed.model import TILE, WIDTH
from vflowopt_search.testbed.vocabulary import USER, VOCABULARY

LlavaModel = LlavaOnevisionForConditionalGeneration


class DenseHead(nn.Linear):
    """Reads colour, shape and digit off each patch; serves training only, is not shipped."""

    def __init__(self) -> None:
        super().__init__(WIDTH, sum(NUM_DENSE_CLASSES))

    def loss(self, hidden_BTPD: Tensor, dense_BTP3: Tensor) -> Tensor:
        """Mean cross-entropy over the readings that are asked for anywhere."""
        readings = self(hidden_BTPD).float().split(NUM_DENSE_CLASSES, dim=-1)
        losses = [
            F.cross_entropy(logits.flatten(0, -2), dense_BTP3[..., k].flatten())
            for k, logits in enumerate(readings)
            if (dense_BTP3[..., k] != IGNORED).any()
        ]
        return torch.stack(losses).mean()


@dataclass(frozen=True)
class StepLosses:
    """Losses of one step, and the share of questions answered right when teacher-forced."""

    total: Tensor
    dense: float
    answer: float = 0.0
    accuracy: float = 0.0


def step_losses(
    model: LlavaModel, head: DenseHead, batch: Batch, dense_weight: float
) -> StepLosses:
    """Loss of a batch: patches alone where it has no questions, otherwise both parts."""
    hidden_BTPD = tower_output(model, batch.pixels_BTCHW)
    dense = head.loss(hidden_BTPD, batch.dense_BTP3)
    if batch.ids_BL.shape[1] == 0:
        return StepLosses(dense, dense.item())
    logits, targets, asked = answer_logits(model, hidden_BTPD, batch)
    answer = F.cross_entropy(logits, targets)
    right = torch.ones(int(asked.max()) + 1, dtype=torch.bool)
    right[asked[logits.argmax(-1) != targets]] = False
    accuracy = right[torch.unique(asked)].float().mean().item()
    return StepLosses(answer + dense_weight * dense, dense.item(), answer.item(), accuracy)


def tower_output(model: LlavaModel, pixels_BTCHW: Tensor) -> Tensor:
    """Last hidden state of the vision tower *before* its final norm: what the model reads."""
    tower = model.model.vision_tower
    embedded = tower.embeddings(pixels_BTCHW.flatten(0, 1))
    hidden: Tensor = tower.encoder(inputs_embeds=embedded).last_hidden_state
    return hidden.view(*pixels_BTCHW.shape[:2], *hidden.shape[1:])


def answer_logits(
    model: LlavaModel, hidden_BTPD: Tensor, batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and targets of every answer token, and the number of the question it belongs to."""
    visual_BVD = _visual_tokens(model, hidden_BTPD)
    embed = model.get_input_embeddings()
    user = embed(torch.tensor([VOCABULARY[USER]])).expand(len(visual_BVD), 1, -1)
    text_BLD = embed(batch.ids_BL)
    inputs_BSD = torch.cat([user, visual_BVD.to(text_BLD.dtype), text_BLD], dim=1)
    num_prefix = 1 + visual_BVD.shape[1]
    hidden_BSD = model.model.language_model(
        inputs_embeds=inputs_BSD,
        attention_mask=_isolating_mask(batch.block_BL, num_prefix),
        position_ids=_positions(batch.place_BL, num_prefix),
        use_cache=False,
    ).last_hidden_state
    wanted_BL = batch.target_BL != IGNORED
    logits = model.lm_head(hidden_BSD[:, num_prefix:][wanted_BL]).float()
    first_of_row = torch.arange(len(wanted_BL))[:, None] * 64
    return logits, batch.target_BL[wanted_BL], (batch.block_BL + first_of_row)[wanted_BL]


def _visual_tokens(model: LlavaModel, hidden_BTPD: Tensor) -> Tensor:
    """Projected patches in the order of the sequence, with the row ends of the stock model."""
    projected_BTPD = model.model.multi_modal_projector(hidden_BTPD)
    sizes = torch.full((len(hidden_BTPD), 2), 2 * TILE)
    packed, _ = model.model.pack_image_features(
        list(projected_BTPD), sizes, image_newline=model.model.image_newline
    )
    return torch.stack(packed)


def _isolating_mask(block_BL: Tensor, num_prefix: int) -> Tensor:
    """Who may look at whom, shape (B, 1, S, S): backwards, at the image or one's own question."""
    block_BS = F.pad(block_BL, (num_prefix, 0))
    own_BSS = block_BS[:, :, None] == block_BS[:, None, :]
    shared_BSS = (block_BS == 0)[:, None, :]
    causal_SS = torch.ones(block_BS.shape[1], block_BS.shape[1], dtype=torch.bool).tril()
    return ((own_BSS | shared_BSS) & causal_SS)[:, None]


def _positions(place_BL: Tensor, num_prefix: int) -> Tensor:
    prefix = torch.arange(num_prefix).expand(len(place_BL), -1)
    return torch.cat([prefix, place_BL + num_prefix], dim=1)
