"""What the engine reads from the arguments of a model's forward.

Shape suffixes: B = batch rows, S = unpruned sequence, Q = new tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vflowopt_search.errors import UnsupportedError
from vflowopt_search.pruning.anatomy import Anatomy


def valid_tokens(base_mask: Any, backbone_mask: Any, like_BS: Tensor) -> Tensor:
    """True at real tokens, False at padding, shape (B, S).

    Args:
        base_mask: `attention_mask` of the base model; the user's, or what `generate` made of it.
        backbone_mask: `attention_mask` of the text backbone.
        like_BS: any tensor of that shape.

    Raises:
        UnsupportedError: the mask was prepared in a form that does not tell padding.
    """
    for mask in (base_mask, backbone_mask):
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return mask[:, : like_BS.shape[1]].to(like_BS.device).bool()
    prepared = base_mask if base_mask is not None else backbone_mask
    if isinstance(prepared, Mapping):
        prepared = prepared.get("full_attention", False)
    if prepared is None:
        return torch.ones_like(like_BS, dtype=torch.bool)
    if not isinstance(prepared, Tensor) or prepared.dim() != 4:
        raise UnsupportedError(
            "the prompt came with a prepared attention mask that does not say which tokens are "
            "padding; pass the 2-D attention_mask that the tokenizer returns"
        )
    # the last token looks at every real token before it, whichever side was padded
    last_BS = prepared[:, 0, -1, : like_BS.shape[1]]
    seen_BS = last_BS if last_BS.dtype == torch.bool else last_BS == 0
    return seen_BS.to(like_BS.device).expand(like_BS.shape)


def kinds_of(input_ids: Tensor, anatomy: Anatomy) -> dict[str, Tensor]:
    """Where the visual tokens of each kind are, boolean (B, S)."""
    kinds = {"image": input_ids == anatomy.image_token_id}
    video = anatomy.video_token_id
    if video is not None and video != anatomy.image_token_id:
        kinds["video"] = input_ids == video
    return kinds


def placeholder_ids(anatomy: Anatomy) -> list[int]:
    """Token ids that stand for something other than text, ascending; no answer holds them."""
    ids = {anatomy.image_token_id, anatomy.video_token_id, *anatomy.refused_tokens}
    return sorted(token for token in ids if token is not None)


def ids_of(call: Mapping[str, Any]) -> Tensor:
    """The token ids of a forward; UnsupportedError without them."""
    ids = call.get("input_ids")
    if ids is None:
        raise UnsupportedError(
            "the model was given inputs_embeds without input_ids, so that visual tokens "
            "cannot be told from text; pass input_ids (and pixel_values) instead"
        )
    return ids if isinstance(ids, Tensor) else torch.as_tensor(ids)


def brings_features(call: Mapping[str, Any]) -> bool:
    """Whether encoded images or videos were passed to this forward."""
    outputs = call.get("mm_encoder_outputs")
    return any(one is not None for one in outputs.values()) if outputs else False


def mask_after(attention_mask: Any, length: int) -> Tensor | None:
    """The part of a 2-D mask that speaks of tokens after the prompt, (B, Q); None: all are real."""
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
        return None
    return attention_mask[:, length:].bool()


def refuse_tokens(input_ids: Tensor, refused: Mapping[int, str], model_type: str) -> None:
    """Raise UnsupportedError for placeholders that would silently stay unpruned."""
    for token, what in refused.items():
        if bool((input_ids == token).any()):
            raise UnsupportedError(
                f"the prompt has {what}, which is not pruned on {model_type} models; give images, "
                "or leave the `with pruned(...)` block for this prompt"
            )


def refuse_positions_of_logits(keep: Any, reads_last_token: bool) -> None:
    """Raise UnsupportedError where `logits_to_keep` names positions that pruning moves."""
    if isinstance(keep, Tensor):
        raise UnsupportedError(
            "logits_to_keep is a tensor of positions, which pruning moves; pass the number of "
            "last positions instead"
        )
    if reads_last_token and isinstance(keep, int) and keep > 1:
        raise UnsupportedError(
            f"logits_to_keep={keep} (as in assisted and prompt-lookup decoding) puts candidate "
            "tokens behind the prompt, but the strategy scores by the attention of the last "
            "prompt token; decode without an assistant, or use a strategy without text_attention"
        )


def refuse_labels(reads_last_token: bool) -> None:
    """Raise UnsupportedError for labels where the last prompt token is looked for at the end."""
    if reads_last_token:
        raise UnsupportedError(
            "labels were given, but the strategy scores by the attention of the last prompt token, "
            "and with labels the answer stands behind it; train with a strategy that has no "
            "text_attention"
        )


def refuse_late_images(came: bool) -> None:
    """Raise UnsupportedError where an image came with a cache that is not empty."""
    if came:
        raise UnsupportedError(
            "an image came after the first part of its prompt was in the cache (a later turn, or "
            "prefill_chunk_size); pruning reads all images in the first forward: start from an "
            "empty cache, and prefill in one piece"
        )
