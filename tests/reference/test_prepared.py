"""Images that come again are encoded once, and nobody can tell from the results."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.pruning.oracle import strategy_of
from tests.small_set import PROMPTS, small_set
from tests.tiny import FAMILIES, tiny_model, tiny_processor
from vflowopt_search.adapters.loading import pixel_scale
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.evaluate.answers import Asking, ask
from vflowopt_search.evaluate.ledger import Ledger
from vflowopt_search.reference.encoder import first_with_same_images, prepare
from vflowopt_search.reference.prepared import PreparedSample, PreparedSet
from vflowopt_search.strategy import Importance

every_family = pytest.mark.parametrize("family", FAMILIES)


def test_same_images_are_told_by_their_pixels() -> None:
    one, two, three = small_set(3).samples
    again = replace(two, prompt="another question", images=(two.images[0].copy(),))
    assert first_with_same_images([one, two, again, three, one]) == [0, 1, 1, 3, 0]


@every_family
def test_repeated_images_share_features_and_keep_their_own_prompt(family: str) -> None:
    samples = small_set(3).samples
    asked_twice = [replace(s, prompt=p) for s in samples for p in PROMPTS[:2]]
    processor = tiny_processor(family)
    adapter = adapter_for(tiny_model(family))
    runs: list[int] = []
    hook = adapter.vision_tower.register_forward_hook(lambda m, a, o: runs.append(len(a[0])))
    shared = prepare(adapter, processor, asked_twice, pixel_scale(processor), batch_size=4)
    tiles_encoded = sum(runs)
    alone = [prepare(adapter, processor, [s], pixel_scale(processor)) for s in asked_twice]
    hook.remove()
    assert tiles_encoded == sum(shared.samples[i].num_tiles for i in (0, 2, 4))
    for mine, other in zip(shared.samples, (one.samples[0] for one in alone), strict=True):
        assert torch.equal(mine.input_ids, other.input_ids)
        assert mine.entropy is not None
        assert other.entropy is not None
        for one, same in zip(mine.entropy, other.entropy, strict=True):
            torch.testing.assert_close(one, same)
        for one, same in zip(mine.features, other.features, strict=True):
            torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-5)


def test_pruned_answers_do_not_depend_on_sharing() -> None:
    model, processor = tiny_model("llava_onevision"), tiny_processor("llava_onevision")
    asked = [replace(s, prompt=p) for s in small_set(3).samples for p in PROMPTS[:3]]
    strategy = strategy_of((0, 0.4), importance=Importance(vision_layer=1, context_threshold=1.1))
    asking = Asking(model, processor, batch_size=4, max_new_tokens=8)
    together = ask(asking, asked, {"pruned": strategy}, Ledger()).answers["pruned"]
    for sample, answer in zip(asked, together, strict=True):
        [alone] = ask(asking, [sample], {"pruned": strategy}, Ledger()).answers["pruned"]
        assert alone.text == answer.text


@pytest.mark.parametrize(
    ("longest", "size"), [(1, 32), (512, 32), (513, 31), (9000, 1), (20_000, 1)]
)
def test_a_batch_holds_about_as_many_tokens_whatever_the_prompts(longest: int, size: int) -> None:
    prompts = [torch.zeros(length, dtype=torch.long) for length in (1, longest)]
    samples = [PreparedSample(prompt, visuals={}, token_inputs={}) for prompt in prompts]
    prepared = PreparedSet(adapter_for(tiny_model("llava")), samples, pad_token_id=0)
    assert prepared.batch_size() == size
