"""The model along an answer: what it says at every position of the unpruned model's own answer.

The model decodes, pruned or not, as it does in use, but each next token is that of the answer.

Shape suffixes: B = samples, T = longest answer, P = positions of all answers, one after the other,
L = decoder layers, D = hidden width, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.feeding import feeding
from vflowopt_search.divergence import ANSWER_METRICS, Readout, divergence
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.pruning.inputs import placeholder_ids
from vflowopt_search.reference.cache import read_tensors, write_tensors
from vflowopt_search.reference.encoder import Progress
from vflowopt_search.reference.fingerprint import generation_sha256, key_digest
from vflowopt_search.reference.halving import Room, in_halves
from vflowopt_search.reference.prepared import PreparedSet, batches
from vflowopt_search.reference.readout import NEEDS_LOGITS
from vflowopt_search.reference.shelf import CacheFolder

FORMAT = "vflowopt-answers/1"
ANSWER_TOKENS = 16
"""Longest answer that is followed, its end of sequence counted."""
LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class AlongAnswer:
    """Hidden states after the final norm where each token of some answers is predicted.

    Attributes:
        hidden_PD: from the last prompt token, which predicts the first, to the last but one of the
            answer.
        lengths: tokens of each answer.
    """

    hidden_PD: Tensor
    lengths: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class AnswerReference:
    """The unpruned model's greedy answers, and what it says along them.

    Attributes:
        answers: token ids of each sample's answer, on the CPU.
        hidden: what stands at the positions of each answer, (T, D), on the CPU.
        generation: fingerprint of how the model chose them.
    """

    answers: tuple[Tensor, ...]
    hidden: tuple[Tensor, ...]
    generation: str

    def tokens(self, indices: Sequence[int]) -> list[Tensor]:
        """The answers of some samples."""
        return [self.answers[i] for i in indices]

    def rows(self, indices: Sequence[int], device: torch.device) -> AlongAnswer:
        """What stands along the answers of some samples."""
        lengths = tuple(len(self.answers[i]) for i in indices)
        return AlongAnswer(torch.cat([self.hidden[i] for i in indices]).to(device), lengths)


def build_answers(
    prepared: PreparedSet,
    key: Mapping[str, str],
    *,
    cache: CacheFolder | None,
    progress: Progress | None = None,
) -> AnswerReference:
    """Read the answers from the cache folder, or ask the unpruned model and leave them there.

    Args:
        prepared: the samples.
        key: what the unpruned model's results depend on.
        cache: where answers are stored; None keeps nothing on disk.
        progress: called with (samples done, samples in total).

    Raises:
        CacheError: the cache folder cannot be written.
        ModelError: a single sample does not fit in memory.
    """
    key = {
        **key,
        "answers": FORMAT,
        "answer_tokens": str(ANSWER_TOKENS),
        "generation": generation_sha256(prepared.adapter.model),
    }
    if cache is None:
        return _ask(prepared, progress)
    path = cache.root / "answers" / key_digest(key) / "answers.safetensors"
    cache.needed.add(path)
    if (stored := read_tensors(path, key)) is not None:
        lengths = stored["lengths"].tolist()
        answers, hidden = (torch.split(stored[name], lengths) for name in ("answer_P", "hidden_PD"))
        return AnswerReference(tuple(answers), tuple(hidden), key["generation"])
    reference = _ask(prepared, progress)
    tensors = {
        "lengths": torch.tensor([len(answer) for answer in reference.answers]),
        "answer_P": torch.cat(reference.answers),
        "hidden_PD": torch.cat(reference.hidden),
    }
    write_tensors(path, tensors, key)
    cache.added(path)
    return reference


def _ask(prepared: PreparedSet, progress: Progress | None) -> AnswerReference:
    def asked(chunk: Sequence[int]) -> tuple[list[Tensor], Sequence[Tensor]]:
        said, _, along = decoded(prepared.adapter, prepared.inputs(chunk), None, layers=False)
        return said, torch.split(along.hidden_PD.cpu(), list(along.lengths))

    answers: list[Tensor] = []
    hidden: list[Tensor] = []
    if progress is not None:
        progress(0, len(prepared))
    everyone = range(len(prepared))
    for _, (said, rows) in in_halves(everyone, prepared.batch_size(), asked, Room(), number=int):
        answers += said
        hidden += rows
        if progress is not None:
            progress(len(answers), len(prepared))
    generation = generation_sha256(prepared.adapter.model)
    return AnswerReference(tuple(answers), tuple(hidden), generation)


def decoded(
    adapter: Adapter,
    inputs: Mapping[str, Any],
    answers: Sequence[Tensor] | None,
    *,
    layers: bool,
) -> tuple[list[Tensor], Tensor, AlongAnswer]:
    """Decode after a batch of prompts; hooks of a pruning engine take effect.

    Args:
        adapter: the model.
        inputs: a prepared batch, left-padded.
        answers: token ids that each row has to say; None lets the model choose, greedily.
        layers: read every decoder layer at the last prompt token; else only the last one.

    Returns:
        Token ids of each answer up to its end of sequence, on the CPU; hidden states at the last
        prompt token (B, L, D), L = 1 without `layers`; and those along the answers. The last layer
        is read after the final norm.
    """
    model: Any = adapter.model
    seen: list[Tensor] = []
    final: list[Tensor] = []
    num_prompt = inputs["input_ids"].shape[1]
    with ExitStack() as stack, torch.inference_mode():
        for layer in adapter.decoder_layers[:-1] if layers else ():
            only_prompt = _keep_last(seen, at_most=len(adapter.decoder_layers) - 1)
            stack.callback(layer.register_forward_hook(only_prompt).remove)
        stack.callback(adapter.backbone.register_forward_hook(_keep_last(final)).remove)
        given = stack.enter_context(feeding(adapter, inputs))
        ids = model.generate(
            **given,
            do_sample=False,
            num_beams=1,
            max_new_tokens=ANSWER_TOKENS if answers is None else max(map(len, answers)),
            suppress_tokens=placeholder_ids(adapter),
            logits_processor=LogitsProcessorList(
                [] if answers is None else [_Dictated(answers, num_prompt)]
            ),
        )
    said = _ended(model, ids[:, num_prompt:].cpu()) if answers is None else list(answers)
    _require_said(adapter, said, ids[:, num_prompt:].cpu())
    hidden_BTD = torch.stack(final, dim=1)
    lengths = tuple(len(answer) for answer in said)
    rows = [row_TD[:length] for row_TD, length in zip(hidden_BTD, lengths, strict=True)]
    hidden_BLD = torch.stack([*seen, final[0]], dim=1)
    return said, hidden_BLD, AlongAnswer(torch.cat(rows), lengths)


class _Dictated(LogitsProcessor):
    """Leaves one token to choose: the next one of an answer, its last one again after its end."""

    def __init__(self, answers: Sequence[Tensor], num_prompt: int) -> None:
        self.answers, self.num_prompt = answers, num_prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.num_prompt
        next_B = torch.stack([answer[min(step, len(answer) - 1)] for answer in self.answers])
        chosen_BV = torch.full_like(scores, -torch.inf)
        return chosen_BV.scatter(1, next_B.to(scores.device)[:, None], 0.0)


def answer_divergences(
    metrics: Sequence[str], adapter: Adapter, unpruned: AlongAnswer, pruned: AlongAnswer
) -> dict[str, Tensor]:
    """Divergence along each answer by some of `ANSWER_METRICS`, mean over its positions, (B,).

    Raises:
        DivergenceError: a value is not finite.
    """
    wanted = {name: ANSWER_METRICS[name] for name in metrics}
    logits = bool(NEEDS_LOGITS & set(wanted.values()))
    gaps: dict[str, list[Tensor]] = {name: [] for name in wanted}
    vocabulary = adapter.backbone.config.vocab_size if logits else 1
    total, step = len(unpruned.hidden_PD), max(1, LOGITS_AT_ONCE // vocabulary)
    for chunk in batches(total, step):
        pair = [
            _position_readout(adapter, along.hidden_PD[chunk.start : chunk.stop], logits=logits)
            for along in (unpruned, pruned)
        ]
        for name, metric in wanted.items():
            gaps[name].append(divergence(metric, *pair))
    return {
        name: torch.stack(
            [gap.mean() for gap in torch.split(torch.cat(parts), list(unpruned.lengths))]
        )
        for name, parts in gaps.items()
    }


def through_head(adapter: Adapter, hidden_PD: Tensor) -> Tensor:
    """Logits of hidden states, (P, V), by the model's own forward: it may scale or cap them.

    Its base runs on a single token, and its output is exchanged for the hidden states.
    """
    model: Any = adapter.model
    special = placeholder_ids(adapter)
    token = next(i for i in range(len(special) + 1) if i not in special)
    ids = torch.tensor([[token]], device=hidden_PD.device)

    def exchange(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = hidden_PD[None]
        return output

    hook = adapter.base.register_forward_hook(exchange)
    try:
        with torch.inference_mode():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        hook.remove()
    logits_PV: Tensor = output.logits[0]
    return logits_PV


def _position_readout(adapter: Adapter, hidden_PD: Tensor, *, logits: bool) -> Readout:
    logits_PV = (
        through_head(adapter, hidden_PD) if logits else hidden_PD.new_zeros(len(hidden_PD), 0)
    )
    return Readout(hidden_BLD=hidden_PD[:, None], logits_BV=logits_PV)


def _keep_last(into: list[Tensor], *, at_most: int | None = None) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        hidden_BSD: Tensor = output if isinstance(output, Tensor) else output[0]
        if at_most is None or len(into) < at_most:
            into.append(hidden_BSD[:, -1].clone())

    return hook


def _require_said(adapter: Adapter, said: Sequence[Tensor], new_BT: Tensor) -> None:
    """Raise UnsupportedError where a model's own `generate` lets nobody dictate."""
    for answer, row in zip(said, new_BT, strict=True):
        if not torch.equal(answer, row[: len(answer)]):
            raise UnsupportedError(
                f"`generate` of {adapter.model_type} models takes no logits processor, so that no "
                "answer can be followed; use a metric of the last prompt token"
            )


def _ended(model: Any, new_BT: Tensor) -> list[Tensor]:
    """Each row up to its first end of sequence, counted; all of it without one."""
    given = model.generation_config.eos_token_id
    ends = given if isinstance(given, list | tuple) else [] if given is None else [given]
    is_end_BT = torch.isin(new_BT, torch.tensor(ends, dtype=new_BT.dtype))
    before_BT = is_end_BT.int().cumsum(1) - is_end_BT.int()
    return [row[row_before == 0] for row, row_before in zip(new_BT, before_BT, strict=True)]
