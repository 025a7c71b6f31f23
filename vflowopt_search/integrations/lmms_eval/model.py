"""The model that lmms-eval runs: `--model vflowopt --model_args pretrained=...,strategy=...`.

Imports lmms-eval, so that only lmms-eval should import it.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger
from tqdm import tqdm

from vflowopt_search.calibration.samples import Sample
from vflowopt_search.errors import ModelError, UnsupportedError
from vflowopt_search.integrations.host import Host, Reply
from vflowopt_search.integrations.lmms_eval.requests import (
    FrameChoice,
    Generation,
    generation_of,
    sample_of_messages,
    sample_of_text,
)
from vflowopt_search.model_source import ModelSource, load
from vflowopt_search.strategy import Strategy
from vflowopt_search.strategy_hub import find_strategy, strategy_beside

UNPRUNED = "none"
"""What `strategy` says for the unpruned model."""


class VFlowOpt(lmms):
    """A model under a strategy, for tasks of one question each (`--force_simple`).

    Args:
        pretrained: folder, hub name, or `testbed`, the model that comes with vflowopt-search.
        strategy: a strategy's file, the folder or hub repository that holds one, or `none`;
            without it, the one saved beside the checkpoint.
        batch_size: prompts to a batch.
        device: `auto`, `cpu`, `cuda`, `cuda:1`; under accelerate, auto is this process's own GPU.
        dtype: `auto` (float32 on the CPU, the checkpoint's own elsewhere) or a type's name.
        max_frames: frames of each video, evenly spread; 8 by default.
        fps: instead, frames of each second of a video.
        system_prompt: stands before every prompt.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        VFlowOptError: what is wrong with the model or the strategy, in one sentence.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        strategy: str | None = None,
        batch_size: int | str = 1,
        device: str = "auto",
        dtype: str = "auto",
        max_frames: int | None = None,
        fps: float | None = None,
        system_prompt: str | None = None,
        trust_remote_code: bool = False,
        **others: Any,
    ) -> None:
        super().__init__()
        others.pop("max_batch_size", None)  # lmms-eval passes it along; there is no automatic size
        if others:
            raise UnsupportedError(
                f"model_args names {', '.join(sorted(others))}, which this model does not know; "
                f"see the docstring of {type(self).__name__}"
            )
        source = ModelSource(str(pretrained), _own_device(device), str(dtype), trust_remote_code)
        model, processor = load(source)
        self.host = Host(model, processor, _strategy(strategy, model))
        self._batch_size = _positive(batch_size)
        self._frames = FrameChoice(max_frames, fps)
        self._system = self._resolve_system_prompt(system_prompt) if system_prompt else None
        self._told: set[str] = set()

    @property
    def batch_size(self) -> int:
        """Prompts to a batch."""
        return self._batch_size

    @property
    def device(self) -> Any:
        """Where the model is; lmms-eval gathers results over processes there."""
        return self.host.adapter.backbone.device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer every request, in its place."""
        answers: list[GenerationResult | None] = [None] * len(requests)
        replies: list[Reply] = []
        start = time.perf_counter()
        for places, generation in self._batches(requests):
            samples = [self._sample(requests[place]) for place in places]
            batch = self.host.answer(samples, **generation.options)
            for place, reply in zip(places, batch, strict=True):
                counts = TokenCounts(
                    input_tokens=reply.text_tokens + reply.visual_tokens,
                    output_tokens=reply.new_tokens,
                )
                answers[place] = GenerationResult(generation.cut(reply.text), counts)
            replies += batch
        _log(replies, time.perf_counter() - start)
        return [answer for answer in answers if answer is not None]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Mean negative log-likelihood of each continuation, and whether it is the greedy one.

        The loss, not the likelihood, as lmms-eval's own models return and its scoring of choices
        (the smallest wins) expects.
        """
        found: list[GenerationResult] = []
        for start in self._progress(range(0, len(requests), self.batch_size)):
            chunk = requests[start : start + self.batch_size]
            samples, continuations = [], []
            for request in chunk:
                context, target, doc_to_visual, doc_id, task, split = _six(request)
                doc = self.task_dict[task][split][doc_id]
                samples.append(self._asked(doc_id, context, doc_to_visual(doc)))
                continuations.append(target if isinstance(target, str) else target(doc))
            each = self.host.likelihood(samples, continuations)
            # in a result of its own, for lmms-eval 0.7 would turn a bare pair into a string
            found += [GenerationResult((one.nll, one.greedy)) for one in each]
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused: a later round may bring images, and those have to come first."""
        raise UnsupportedError(
            "this task asks in several rounds, but pruning reads all images in the first forward "
            "of a prompt; choose a task that asks once"
        )

    def _sample(self, request: Instance) -> Sample:
        context, _, doc_to_visual, doc_id, task, split = request.args
        return self._asked(doc_id, context, doc_to_visual(self.task_dict[task][split][doc_id]))

    def _asked(self, doc_id: int, context: str, visuals: Sequence[Any] | None) -> Sample:
        return sample_of_text(str(doc_id), context, visuals or (), self._frames, self._system)

    def _settings(self, request: Instance) -> dict[str, Any]:
        settings: dict[str, Any] = request.args[1]
        return settings

    def _batches(self, requests: Sequence[Instance]) -> Iterator[tuple[list[int], Generation]]:
        """Places of requests that are answered together, with the settings they share."""
        alike: dict[str, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            alike[repr(sorted(self._settings(request).items()))].append(place)
        batches = [
            (places[start : start + self.batch_size], generation_of(settings))
            for places in alike.values()
            for settings in [self._settings(requests[places[0]])]
            for start in range(0, len(places), self.batch_size)
        ]
        for places, generation in self._progress(batches):
            self._tell_ignored(generation)
            yield places, generation

    def _tell_ignored(self, generation: Generation) -> None:
        fresh = sorted(set(generation.ignored) - self._told)
        if fresh:
            self._told.update(fresh)
            logger.warning(f"generation settings that mean nothing here: {', '.join(fresh)}")

    def _progress(self, batches: Any) -> Any:
        return tqdm(batches, desc="Answering", disable=self.rank != 0)


class VFlowOptChat(VFlowOpt):
    """A model under a strategy, for tasks that are messages; what lmms-eval takes by default."""

    is_simple = False

    def _sample(self, request: Instance) -> Sample:
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        return sample_of_messages(str(doc_id), messages, self._frames, self._system)

    def _settings(self, request: Instance) -> dict[str, Any]:
        settings: dict[str, Any] = request.args[2]
        return settings


def _strategy(name: str | None, model: Any) -> Strategy | None:
    if name is None:
        return strategy_beside(model)
    return None if str(name).lower() == UNPRUNED else find_strategy(str(name))


def _six(request: Instance) -> tuple[str, str | Callable[..., str], Any, int, str, str]:
    """The arguments of a request for a likelihood; without an image lmms-eval gives fewer."""
    if len(request.args) != 6:
        raise UnsupportedError(
            "the metric acc_mutual_info asks how likely words are without any prompt, which a chat "
            "model cannot say; choose another metric of this task"
        )
    arguments: tuple[str, str | Callable[..., str], Any, int, str, str] = request.args
    return arguments


def _own_device(device: str) -> str:
    """Of several processes, each takes the GPU of its number."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    if device in ("auto", "cuda") and rank is not None and torch.cuda.is_available():
        return f"cuda:{rank}"
    return device


def _positive(batch_size: int | str) -> int:
    if not str(batch_size).isdigit() or int(batch_size) < 1:
        raise ModelError(f"batch_size is {batch_size!r}, but must be a number from 1 on; give one")
    return int(batch_size)


def _log(replies: Sequence[Reply], seconds: float) -> None:
    """Tell lmms-eval, which writes it into its results, how fast it went and what was kept."""
    tokens = sum(reply.new_tokens for reply in replies)
    seen = [reply for reply in replies if reply.visual_tokens]
    kept = [
        sum(reply.tokens_per_layer) / len(reply.tokens_per_layer) / reply.visual_tokens
        for reply in seen
    ]
    log_metrics(
        total_elapsed_time=seconds,
        total_gen_tokens=tokens,
        avg_speed=tokens / seconds if seconds else 0.0,
        additional_metrics={
            "total_requests": len(replies),
            "visual_tokens": sum(reply.visual_tokens for reply in seen) / max(1, len(seen)),
            "mean_retained": sum(kept) / max(1, len(kept)),
        },
    )
