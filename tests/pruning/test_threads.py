"""Several threads on one pruned model: each gets the answer that it would get alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from transformers import BatchFeature

from tests.pruning.oracle import strategy_of
from tests.tiny import noise_image, tiny_model, tiny_processor
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.deploy import prune, pruned
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.strategy import Recycling, Strategy

THREADS = 6
STRATEGIES = [
    strategy_of((0, 0.4), (3, 0.5), recycling=Recycling(cell=2.0)),
    strategy_of((2, 0.3), scores=["text_attention"]),
]


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads take turns hundreds of times within one forward."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


def prompts(family: str) -> list[BatchFeature]:
    """One prompt each, with one to three images."""
    generator = torch.Generator().manual_seed(8)
    samples = [
        Sample(
            str(i),
            "what is on the left"[: 7 + i],
            tuple(noise_image((30 + 7 * i, 50 - 3 * i), generator) for _ in range(i % 3 + 1)),
        )
        for i in range(THREADS)
    ]
    return [encode(tiny_processor(family), [sample]) for sample in samples]


@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_threads_do_not_mix_up_their_prompts(
    family: str, strategy: Strategy, hurried: None
) -> None:
    model: Any = tiny_model(family)
    inputs = prompts(family)
    start = Barrier(THREADS)

    def answer(number: int) -> tuple[list[int], LastPrefill]:
        ids = model.generate(**inputs[number], max_new_tokens=4, do_sample=False)
        last = applied.last
        assert last is not None
        return ids[0].tolist(), last

    def at_once(number: int) -> tuple[list[int], LastPrefill]:
        start.wait()
        return answer(number)

    with pruned(model, strategy) as applied:
        alone = [answer(number) for number in range(THREADS)]
        with ThreadPoolExecutor(THREADS) as pool:
            together = list(pool.map(at_once, range(THREADS)))
    assert len({tuple(last.visual_tokens) for _, last in alone}) > 1
    for (ids, last), (expected_ids, expected) in zip(together, alone, strict=True):
        assert ids == expected_ids
        # `applied.last` was this thread's own
        assert last.visual_tokens == expected.visual_tokens
        assert last.tokens_per_layer == expected.tokens_per_layer


def test_a_thread_without_a_prompt_sees_the_last_of_all() -> None:
    model: Any = tiny_model("llava")
    inputs = prompts("llava")
    handle = prune(model, STRATEGIES[1])
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: model(**inputs[1])).result()
    assert handle.last is not None
    assert handle.last.visual_tokens == [32]
    model(**inputs[0])
    assert handle.last.visual_tokens == [16]
    handle.remove()
    assert handle.last.visual_tokens == [16]
