"""A model that answers batches of prompts under a strategy, and says what each one cost.

Shape suffixes: B = prompts of a batch, T = new tokens, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.prompts import prompt_text
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.deploy import prune
from vflowopt_search.errors import CalibrationError
from vflowopt_search.integrations.cache_size import allocated_bytes, bytes_per_token
from vflowopt_search.pruning.inputs import kinds_of
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.selfcheck.check import require_checked
from vflowopt_search.strategy import Strategy


@dataclass(frozen=True)
class Reply:
    """An answer and what it cost.

    Attributes:
        text: the answer, without special tokens.
        new_tokens: tokens of the answer, its end included.
        ended: whether the model ended it; else it was cut off at `max_new_tokens`.
        text_tokens: tokens of the prompt that are not visual, padding left out.
        visual_tokens: visual tokens of the prompt, before pruning.
        tokens_per_layer: visual tokens that each decoder layer held.
        planned_kv_bytes: KV cache of this prompt and answer, had it been alone.
        kv_bytes: its share of what was allocated for the batch, padding included; None where the
            cache does not say (see `allocated_bytes`).
    """

    text: str
    new_tokens: int
    ended: bool
    text_tokens: int
    visual_tokens: int
    tokens_per_layer: tuple[int, ...]
    planned_kv_bytes: int | None
    kv_bytes: int | None


@dataclass(frozen=True)
class Likelihood:
    """How a model sees a given continuation.

    Attributes:
        nll: negative log-likelihood in nats, mean over the continuation's tokens.
        greedy: whether greedy decoding would have written it.
    """

    nll: float
    greedy: bool


class Host:
    """A model with a strategy on it until `close`; may be called from several threads.

    Args:
        model: a loaded model of a supported family.
        processor: its processor.
        strategy: None leaves the model whole.

    Raises:
        StrategyError: the strategy belongs to another model.
        ModelError: the model cannot be pruned, or is pruned already.
    """

    def __init__(self, model: Any, processor: Any, strategy: Strategy | None) -> None:
        self.adapter = adapter_for(model)
        require_checked(self.adapter, processor)
        self.model: Any = self.adapter.model
        self.processor, self.strategy = processor, strategy
        self._handle = None if strategy is None else prune(self.model, strategy)

    def close(self) -> None:
        """Take the strategy off the model."""
        if self._handle is not None:
            self._handle.remove()

    def answer(self, samples: Sequence[Sample], **generation: Any) -> list[Reply]:
        """Answer a batch; `generation` goes to `generate` (`max_new_tokens`, `do_sample`, ...).

        Raises:
            CalibrationError: the processor refuses a sample.
        """
        inputs = self._encoded(samples)
        with torch.inference_mode():
            out = self.model.generate(**inputs, **generation, return_dict_in_generate=True)
        new_BT = out.sequences[
            :: len(out.sequences) // len(samples), inputs["input_ids"].shape[1] :
        ]
        texts = self.processor.batch_decode(new_BT, skip_special_tokens=True)
        lengths = [self._length(row_T) for row_T in new_BT]
        return self._replies(inputs, out.past_key_values, texts, lengths)

    def likelihood(
        self, samples: Sequence[Sample], continuations: Sequence[str]
    ) -> list[Likelihood]:
        """How likely each continuation is behind its prompt, through the same pruned cache.

        Raises:
            CalibrationError: a continuation is empty, or the processor refuses a sample.
        """
        inputs = self._encoded(samples)
        pairs = zip(samples, continuations, strict=True)
        wanted = [self._continuation_ids(sample, text) for sample, text in pairs]
        start, end = inputs["input_ids"].shape[1], self.processor.tokenizer.eos_token_id

        def forced(row: int, ids: Tensor) -> list[int]:
            step = len(ids) - start
            return [wanted[row][step] if step < len(wanted[row]) else end or 0]

        with torch.inference_mode():
            out = self.model.generate(
                **inputs,
                max_new_tokens=max(map(len, wanted)),
                do_sample=False,
                num_beams=1,
                prefix_allowed_tokens_fn=forced,
                output_logits=True,
                return_dict_in_generate=True,
            )
            logits_BTV = torch.stack(out.logits, dim=1).float()
        rows = zip(logits_BTV, wanted, strict=True)
        return [_likelihood(logits_TV, ids) for logits_TV, ids in rows]

    def _encoded(self, samples: Sequence[Sample]) -> Any:
        backbone = self.adapter.backbone
        return encode(self.processor, samples, device=backbone.device).to(backbone.dtype)

    def _continuation_ids(self, sample: Sample, continuation: str) -> list[int]:
        """Token ids of a continuation as they stand behind the prompt's text."""
        tokenize, prompt = self.processor.tokenizer, prompt_text(self.processor, sample)
        before: list[int] = tokenize(prompt)["input_ids"]
        ids: list[int] = tokenize(prompt + continuation)["input_ids"][len(before) :]
        if not ids:
            raise CalibrationError(
                f"the continuation {continuation!r} of sample {sample.id} has no tokens, so that "
                f"it has no likelihood; give it words"
            )
        return ids

    def _length(self, new_T: Tensor) -> tuple[int, bool]:
        """Tokens of an answer up to its end, which is counted, and whether it has one."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        for place, token in enumerate(new_T.tolist()):
            if token in ends:
                return place + 1, True
        return len(new_T), False

    def _replies(
        self, inputs: Any, cache: Any, texts: Sequence[str], lengths: Sequence[tuple[int, bool]]
    ) -> list[Reply]:
        visual_B = self._visual_tokens(inputs["input_ids"])
        text_B = (inputs["attention_mask"].sum(1).cpu() - torch.tensor(visual_B)).tolist()
        kept = self._kept(visual_B)
        per_token = bytes_per_token(cache)
        total = allocated_bytes(cache)
        replies = []
        for row, text in enumerate(texts):
            new, ended = lengths[row]
            held = text_B[row] + new - 1  # the last token is never put into the cache
            replies.append(
                Reply(
                    text=text,
                    new_tokens=new,
                    ended=ended,
                    text_tokens=text_B[row],
                    visual_tokens=visual_B[row],
                    tokens_per_layer=kept[row],
                    planned_kv_bytes=_planned(per_token, kept[row], held),
                    kv_bytes=None if total is None else total // len(texts),
                )
            )
        return replies

    def _visual_tokens(self, input_ids: Tensor) -> list[int]:
        """Visual tokens of every row."""
        kinds = kinds_of(input_ids, self.adapter).values()
        counts: list[int] = torch.stack([is_BS.sum(1) for is_BS in kinds]).sum(0).tolist()
        return counts

    def _kept(self, visual_B: Sequence[int]) -> list[tuple[int, ...]]:
        """Visual tokens alive in every layer, by row; all of them where nothing was pruned."""
        last: LastPrefill | None = None if self._handle is None else self._handle.last
        if last is None or not any(visual_B):
            return [(count,) * len(self.adapter.decoder_layers) for count in visual_B]
        beams = len(last.tokens_per_layer) // len(visual_B)
        return [tuple(row) for row in last.tokens_per_layer[::beams]]


def _planned(
    per_token: Sequence[int] | None, visual_per_layer: Sequence[int], others: int
) -> int | None:
    """Bytes of a cache of so many tokens in each layer."""
    if per_token is None:
        return None
    held = zip(per_token, visual_per_layer, strict=True)
    return sum(each * (visual + others) for each, visual in held)


def _likelihood(logits_TV: Tensor, ids: Sequence[int]) -> Likelihood:
    wanted_T = torch.tensor(ids, device=logits_TV.device)
    logits_TV = logits_TV[: len(ids)]
    nll = torch.nn.functional.cross_entropy(logits_TV, wanted_T)
    return Likelihood(float(nll), bool((logits_TV.argmax(-1) == wanted_T).all()))
