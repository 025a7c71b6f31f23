"""One answer with a stopwatch: until the decoder, until the first token, every token, the end.

Shape suffixes: B = batch rows, T = tokens so far.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from vflowopt_search.adapters.base import Adapter
from vflowopt_search.benchmark.costs import cache_bytes
from vflowopt_search.pruning.inputs import placeholder_ids


@dataclass(frozen=True)
class Answer:
    """The times of one answer to a batch, in seconds.

    Attributes:
        encoding: until the decoder is reached: vision encoder and projector.
        decoder: from there to the first token.
        steps: of each further token.
        whole: of the whole answer.
        kv_bytes: of the cache after the prompt.
    """

    encoding: float
    decoder: float
    steps: tuple[float, ...]
    whole: float
    kv_bytes: int

    @property
    def first_token(self) -> float:
        """Seconds until the first token."""
        return self.encoding + self.decoder

    @property
    def per_step(self) -> float:
        """Mean seconds of a token after the first."""
        return sum(self.steps) / len(self.steps)


@dataclass
class Stopwatch:
    """Watches one `generate` of a model."""

    device: torch.device
    reached_decoder: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    kv_bytes: int = 0

    def now(self) -> float:
        """The time, once work that a GPU still has queued is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def watching(self, backbone: nn.Module) -> Iterator[None]:
        """Note when the decoder is reached and what its cache holds after the prompt."""
        hooks = [
            backbone.register_forward_pre_hook(self._before, prepend=True),
            backbone.register_forward_hook(self._after),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, module: nn.Module, args: Any) -> None:
        if not self.reached_decoder:
            self.reached_decoder.append(self.now())

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.tokens:
            self.kv_bytes = cache_bytes(output.past_key_values)


class _Watched(StoppingCriteria):
    """Stops nothing; tells the stopwatch of each token."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Any:
        self.watch.tokens.append(self.watch.now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def timed_answer(adapter: Adapter, inputs: Mapping[str, Any], new_tokens: int) -> Answer:
    """Answer a batch with exactly so many tokens, greedily."""
    watch = Stopwatch(adapter.backbone.device)
    model: Any = adapter.model
    with torch.inference_mode(), watch.watching(adapter.backbone):
        start = watch.now()
        model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            suppress_tokens=placeholder_ids(adapter),  # random weights may well say them
            stopping_criteria=StoppingCriteriaList([_Watched(watch)]),
        )
        end = watch.now()
    [reached] = watch.reached_decoder
    first, times = watch.tokens[0], watch.tokens
    steps = tuple(late - early for early, late in pairwise(times))
    return Answer(reached - start, first - reached, steps, end - start, watch.kv_bytes)
