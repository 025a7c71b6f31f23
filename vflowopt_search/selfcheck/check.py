"""The self-check: what pruning promises, measured on one model, here and now.

Keeping everything changes no bit; removing tokens equals masking them in the unpruned model; the
cache holds what was planned; scores are finite; a batch answers as its prompts do one by one.

Shape suffixes: B = rows, N = visual tokens of a row, V = vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import nn

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.adapters.feeding import (
    ENCODED,
    encode_visuals,
    encoder_inputs,
    feeding,
)
from vflowopt_search.adapters.generic import GenericAdapter
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.budget import kept_counts
from vflowopt_search.errors import UnsupportedError, VFlowOptError, first_line
from vflowopt_search.memory_errors import fitting, is_out_of_memory
from vflowopt_search.pruning.last_token import last_token_only
from vflowopt_search.pruning.occupied import refuse_if_pruned
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.selfcheck.answer import (
    NEW_TOKENS,
    answer,
    gap_between,
    largest,
    not_finite,
    pruned_answer,
)
from vflowopt_search.selfcheck.importance import attention_gap
from vflowopt_search.selfcheck.inputs import (
    BREAKDOWNS,
    PIXELS,
    Prompts,
    make_prompts,
)
from vflowopt_search.selfcheck.masking import masked_logits
from vflowopt_search.selfcheck.report import Check, Report
from vflowopt_search.selfcheck.strategies import middle_of, strategies_of, strategy_of
from vflowopt_search.strategy import Strategy

NOISE_FACTOR = 4
"""How many times the model's own noise a difference may be: both sides have it."""

MOST_OF_PADDING = 0.02
"""How far a model's unpruned answers in a batch may be from those one by one, in any precision."""

_log = logging.getLogger(__name__)

_PASSED: WeakSet[nn.Module] = WeakSet()


def check_model(model: nn.Module, processor_or_inputs: Any = None) -> Report:
    """Check that pruning does on this model what it promises; takes some forwards of one image.

    Not checked are recycling and packed positions, which no family does in a way of its own.

    Args:
        model: a loaded model.
        processor_or_inputs: its processor; or a batch with images that it takes; or None, which
            makes pixels of noise where the model takes nothing else.

    Raises:
        ModelError: no adapter serves the model, it is pruned at the moment, or memory runs out.
        VFlowOptError: no inputs can be made, or the model breaks down on the way.
    """
    refuse_if_pruned(model)
    adapter = adapter_for(model)
    too_large = (
        f"the self-check of this {adapter.model_type} model ran out of memory on "
        f"{adapter.backbone.device}; free some, or check it on a device with more"
    )
    with fitting(too_large), _settled(adapter.model):
        prompts = make_prompts(adapter, processor_or_inputs)
        checks = _made(adapter, prompts)
    report = Report(
        adapter.model_type,
        type(adapter).__name__,
        prompts.told,
        str(adapter.backbone.device),
        str(adapter.backbone.dtype).removeprefix("torch."),
        tuple(checks),
    )
    if report.passed:
        _PASSED.add(adapter.model)
    return report


def require_checked(adapter: Adapter, processor: Any = None) -> None:
    """Let a model that is served by its structure alone pass a self-check once; others need none.

    Raises:
        UnsupportedError: it fails; names the check and the figure.
    """
    if isinstance(adapter, GenericAdapter) and adapter.model not in _PASSED:
        check_model(adapter.model, processor).require()


def trust(model: nn.Module) -> None:
    """Let a model count as checked, for it passed before."""
    _PASSED.add(getattr(model, "_orig_mod", model))


def _made(adapter: Adapter, prompts: Prompts) -> list[Check]:
    """The checks; those until then where the model breaks down after one has failed."""
    checks: list[Check] = []
    try:
        for check in _checks(adapter, prompts):
            checks.append(check)
    except VFlowOptError:
        raise
    except BREAKDOWNS as error:
        if is_out_of_memory(error):
            raise
        _log.debug("the self-check of a %s model broke down", adapter.model_type, exc_info=error)
        if all(check.passed for check in checks):
            last = checks[-1].name if checks else "the start"
            raise UnsupportedError(
                f"the self-check of this {adapter.model_type} model breaks down after {last!r} "
                f"({type(error).__name__}: {first_line(error)}); it cannot be pruned with this "
                "version of transformers"
            ) from error
    return checks


class _Bounds(NamedTuple):
    """How far two ways to the same logits may be apart, relative to the largest logit.

    Attributes:
        least: allowed even where the model shows no noise at all.
        most: not allowed even where it shows more.
    """

    least: float
    most: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> _Bounds:
        """Those of a precision."""
        eps = torch.finfo(dtype).eps
        return cls(least=max(5e-5, 4 * eps), most=max(1e-3, 20 * eps))

    def over(self, noise: float) -> float:
        """The limit for a comparison both of whose sides are as noisy as the model itself."""
        return min(self.most, max(self.least, NOISE_FACTOR * noise))


def _checks(adapter: Adapter, prompts: Prompts) -> Iterator[Check]:
    whole = answer(adapter, prompts.batch)
    yield Check("logits that are not finite, unpruned", not_finite([whole.logits]), 0)
    everything = strategies_of(adapter, keep=1.0)[0]
    kept, _ = pruned_answer(adapter, prompts.batch, everything)
    yield Check("everything kept = unpruned, logits", largest(kept.logits - whole.logits), 0)
    differing = float((kept.ids != whole.ids).sum())
    yield Check("everything kept = unpruned, answers that differ", differing, 0)
    unmasked = masked_logits(adapter, prompts.batch, whole.ids, None)
    noise = gap_between(unmasked, whole.logits)
    bounds = _Bounds.of(adapter.backbone.dtype)
    yield Check("nothing masked = unpruned, logits", noise, bounds.most)
    for strategy in strategies_of(adapter, keep=0.5):
        yield from _removal(adapter, prompts.batch, strategy, bounds.over(noise))
    yield from _eager_map(adapter, prompts.batch)
    yield from _encoded_before(adapter, prompts.batch, bounds)
    if prompts.together is not None:
        yield from _together(adapter, prompts, bounds, noise)


def _removal(
    adapter: Adapter, inputs: Mapping[str, Any], strategy: Strategy, limit: float
) -> Iterator[Check]:
    """One strategy against the unpruned model with the same tokens masked, and what it left."""
    pruned, last = pruned_answer(adapter, inputs, strategy)
    if last is None:
        yield Check(f"{strategy.name}: prompts in which no image was found", 1, 0)
        return
    masked = masked_logits(adapter, inputs, pruned.ids, last)
    yield Check(
        f"{strategy.name}: removed = masked, logits", gap_between(pruned.logits, masked), limit
    )
    planned = _planned(strategy, last, len(pruned.held))
    wrong = [abs(a - b) for a, b in zip(pruned.held, planned, strict=True)]
    yield Check(f"{strategy.name}: cached tokens not planned", max(wrong, default=0), 0)
    yield Check(f"{strategy.name}: scores not finite", not_finite(last.importance), 0)


def _planned(strategy: Strategy, last: LastPrefill, num_layers: int) -> list[int]:
    """Tokens that each cache layer must hold: of the longest row, and all answered but the last."""
    rows = []
    for text, visual in zip(last.text_tokens, last.visual_tokens, strict=True):
        counts = kept_counts(strategy.stages, visual)
        alive = [visual] * num_layers
        for stage, count in zip(strategy.stages, counts, strict=True):
            alive[stage.layer :] = [count] * (num_layers - stage.layer)
        rows.append([text + tokens + NEW_TOKENS - 1 for tokens in alive])
    return [max(row) for row in zip(*rows, strict=True)]


def _eager_map(adapter: Adapter, inputs: Mapping[str, Any]) -> Iterator[Check]:
    """What importance is made of, against the eager attention map."""
    if "received_attention" not in adapter.family.scores or not adapter.vision_layers:
        return
    gap = attention_gap(adapter, inputs, adapter.vision_layers[-1])
    if gap is not None:
        limit = max(1e-4, 4 * torch.finfo(adapter.backbone.dtype).eps)
        yield Check("received attention = eager map", gap, limit)


def _encoded_before(
    adapter: Adapter, inputs: Mapping[str, Any], bounds: _Bounds
) -> Iterator[Check]:
    """Features in place of pixels and one token in the last layer: how a search measures."""
    call = encoder_inputs(adapter, inputs, "image")
    rest = {k: v for k, v in inputs.items() if k not in call or k.endswith("grid_thw")}
    if not call or any(name.startswith(PIXELS) for name in rest):  # without images, or with videos
        return
    with torch.no_grad():
        output = encode_visuals(adapter, call, "image")
        rest[ENCODED] = {"image": adapter.encoded(adapter.features(output))}
        with last_token_only(adapter), feeding(adapter, rest) as fed:
            given = adapter.model(**fed, use_cache=False).logits[:, -1]
        whole = adapter.model(**inputs, use_cache=False).logits[:, -1]
    yield Check("measured as in a search: logits", gap_between(given, whole), bounds.least)


def _together(adapter: Adapter, prompts: Prompts, bounds: _Bounds, noise: float) -> Iterator[Check]:
    """Two ragged prompts in one batch against each by itself, pruned by a score of no content."""
    assert prompts.together is not None
    plain = {"random", "uniform"} & set(adapter.family.scores)
    if not plain:
        return
    # a score that reads the image may break a tie another way in a batch
    strategy = strategy_of(adapter, "two prompts", sorted(plain)[0], (0, middle_of(adapter)), 0.5)
    # some models do not answer alike in a batch even unpruned, which is no fault of pruning
    most = max(bounds.most, MOST_OF_PADDING)
    padding = Check(
        "two prompts, unpruned: batch = one by one", _batch_gap(adapter, prompts, None), most
    )
    yield padding
    if padding.passed:  # else nothing that pruning does wrong could be told from it
        limit = min(most, max(bounds.over(noise), NOISE_FACTOR * padding.figure))
        gap = _batch_gap(adapter, prompts, strategy)
        yield Check("two prompts: batch = one by one", gap, limit)


def _batch_gap(adapter: Adapter, prompts: Prompts, strategy: Strategy | None) -> float:
    """How far a batch's logits are from those of its prompts, while they say the same."""
    assert prompts.together is not None
    both = pruned_answer(adapter, prompts.together, strategy)[0]
    gaps = []
    for row, inputs in enumerate(prompts.each):
        alone = pruned_answer(adapter, inputs, strategy)[0]
        same = (both.ids[row] == alone.ids[0]).long().cumprod(0)
        steps = min(NEW_TOKENS, 1 + int(same.sum()))
        gaps.append(gap_between(both.logits[row, :steps], alone.logits[0, :steps]))
    return max(gaps) if all(gap == gap for gap in gaps) else float("nan")


@contextmanager
def _settled(model: nn.Module) -> Iterator[None]:
    """In eval mode inside the `with` block."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
