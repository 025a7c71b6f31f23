"""A host answers as `generate` does, and says what each prompt cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from tests.contract.models import model_of
from tests.families import tiny
from tests.pruning.oracle import strategy_of
from tests.tiny import noise_image, tiny_model, tiny_processor
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.deploy import pruned
from vflowopt_search.errors import CalibrationError, StrategyError
from vflowopt_search.integrations.cache_size import allocated_bytes, bytes_per_token
from vflowopt_search.integrations.host import Host
from vflowopt_search.strategy import Importance, Strategy

PRUNED = strategy_of((0, 0.4), (3, 0.5))
BY_TEXT = strategy_of((2, 0.3), scores=["text_attention"])


def pictures(count: int, seed: int = 3) -> tuple[Image.Image, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(noise_image((50 + 9 * i, 40), generator) for i in range(count))


SAMPLES = [
    Sample("two", "describe the picture on the left", pictures(2)),
    Sample("none", "how many", ()),
    Sample("one", "What color is the cat?", pictures(1, seed=4)),
]


def greedy(model: Any, processor: Any, sample: Sample, strategy: Strategy | None) -> str:
    """The answer to one prompt alone, by `generate` itself."""
    inputs = encode(processor, [sample])
    with pruned(model, strategy or strategy_of((0, 1.0))):
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    new = ids[:, inputs["input_ids"].shape[1] :]
    [text] = processor.batch_decode(new, skip_special_tokens=True)
    return str(text)


@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
@pytest.mark.parametrize("strategy", [PRUNED, BY_TEXT, None])
def test_a_batch_is_answered_as_its_prompts_one_by_one(
    family: str, strategy: Strategy | None
) -> None:
    model, processor = tiny_model(family), tiny_processor(family)
    host = Host(model, processor, strategy)
    replies = host.answer(SAMPLES, max_new_tokens=6, do_sample=False)
    host.close()
    expected = [greedy(model, processor, sample, strategy) for sample in SAMPLES]
    assert [reply.text for reply in replies] == expected
    assert [bool(reply.visual_tokens) for reply in replies] == [True, False, True]


def test_replies_say_what_was_kept_and_what_the_cache_took() -> None:
    model, processor = tiny_model("llava"), tiny_processor("llava")
    host = Host(model, processor, PRUNED)
    [one] = host.answer([SAMPLES[2]], max_new_tokens=6, do_sample=False)
    replies = host.answer(SAMPLES, max_new_tokens=6, do_sample=False)
    host.close()
    assert one.tokens_per_layer == (6, 6, 6, 3, 3, 3)
    assert [r.tokens_per_layer for r in replies] == [
        (13, 13, 13, 6, 6, 6),
        (0,) * 6,
        (6, 6, 6, 3, 3, 3),
    ]
    assert [r.visual_tokens for r in replies] == [32, 0, 16]
    # alone there is no padding: what was allocated is what was planned
    assert one.kv_bytes == one.planned_kv_bytes
    text = config_of(model)
    per_token = 2 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads) * 4
    held = 6 * (one.text_tokens + one.new_tokens - 1) + sum(one.tokens_per_layer)
    assert one.planned_kv_bytes == per_token * held
    # together every row is as long as the longest
    assert all(r.kv_bytes == replies[0].kv_bytes for r in replies)
    assert replies[0].kv_bytes is not None
    assert replies[0].kv_bytes >= max(r.planned_kv_bytes or 0 for r in replies)


def test_a_batch_without_images_has_kept_nothing_whatever_came_before() -> None:
    model, processor = tiny_model("llava"), tiny_processor("llava")
    host = Host(model, processor, PRUNED)
    host.answer([SAMPLES[2]], max_new_tokens=2, do_sample=False)
    [reply] = host.answer([SAMPLES[1]], max_new_tokens=2, do_sample=False)
    host.close()
    assert reply.tokens_per_layer == (0,) * 6
    assert reply.kv_bytes == reply.planned_kv_bytes


def config_of(model: Any) -> Any:
    return model.config.text_config


def test_a_whole_model_holds_more() -> None:
    model, processor = tiny_model("llava"), tiny_processor("llava")
    host = Host(model, processor, None)
    [whole] = host.answer([SAMPLES[2]], max_new_tokens=6, do_sample=False)
    host.close()
    assert whole.tokens_per_layer == (16,) * 6
    assert whole.kv_bytes == whole.planned_kv_bytes


def test_beams_give_one_reply_each() -> None:
    model, processor = tiny_model("llava"), tiny_processor("llava")
    host = Host(model, processor, PRUNED)
    replies = host.answer([SAMPLES[0], SAMPLES[2]], max_new_tokens=4, num_beams=3)
    host.close()
    assert [reply.visual_tokens for reply in replies] == [32, 16]
    assert [reply.tokens_per_layer[0] for reply in replies] == [13, 6]


def test_a_cache_with_a_window_does_not_say_what_a_token_takes() -> None:
    windowed = model_of("gemma3")
    out = windowed.generate(
        **tiny("gemma3").inputs(torch.float32), max_new_tokens=2, return_dict_in_generate=True
    )
    assert bytes_per_token(out.past_key_values) is None
    assert allocated_bytes(out.past_key_values) is None


# --- likelihood


@pytest.mark.parametrize("strategy", [PRUNED, None])
def test_likelihood_is_that_of_teacher_forcing(strategy: Strategy | None) -> None:
    model, processor = tiny_model("llava_onevision"), tiny_processor("llava_onevision")
    samples = [SAMPLES[0], SAMPLES[2]]
    words = [" red cat", " two"]
    host = Host(model, processor, strategy)
    found = host.likelihood(samples, words)
    host.close()
    for sample, continuation, likelihood in zip(samples, words, found, strict=True):
        nll, best = forced(model, processor, sample, continuation, strategy)
        assert likelihood.nll == pytest.approx(nll, abs=1e-5)
        assert likelihood.greedy is best


def forced(
    model: Any, processor: Any, sample: Sample, continuation: str, strategy: Strategy | None
) -> tuple[float, bool]:
    """Loss of a continuation behind its prompt in one forward over both."""
    inputs = encode(processor, [sample])
    tail = processor.tokenizer(continuation, return_tensors="pt", add_special_tokens=False)
    ids = tail["input_ids"]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad(), pruned(model, strategy or strategy_of((0, 1.0))):
        logits = model(**inputs).logits[0, -ids.shape[1] - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits, ids[0])
    return float(loss), bool((logits.argmax(-1) == ids[0]).all())


def test_the_greedy_answer_is_the_greedy_continuation() -> None:
    model, processor = tiny_model("llava"), tiny_processor("llava")
    host = Host(model, processor, BY_TEXT)
    [reply] = host.answer([SAMPLES[2]], max_new_tokens=3, do_sample=False)
    text = " " + reply.text.strip()
    greedy, other = host.likelihood([SAMPLES[2]] * 2, [text, " zebra zebra"])
    host.close()
    assert greedy.greedy
    assert not other.greedy
    assert greedy.nll < other.nll


def test_an_empty_continuation_is_refused() -> None:
    host = Host(tiny_model("llava"), tiny_processor("llava"), None)
    with pytest.raises(CalibrationError, match="the continuation '' of sample one has no tokens"):
        host.likelihood([SAMPLES[2]], [""])


def test_a_strategy_for_another_model_is_refused_and_close_takes_ours_off() -> None:
    model, processor = tiny_model("llava"), tiny_processor("llava")
    deep = Strategy(
        name="deep", importance=Importance(score="uniform"), stages=strategy_of((20, 0.5)).stages
    )
    with pytest.raises(StrategyError, match="does not fit"):
        Host(model, processor, deep)
    Host(model, processor, PRUNED).close()
    Host(model, processor, PRUNED).close()
