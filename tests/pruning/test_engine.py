"""What the engine promises beside the numbers: it borrows the model, counts right, refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.contract.oracle import generate
from tests.pruning.oracle import QUESTIONS, eager_importance, ragged_inputs, strategy_of
from tests.tiny import FAMILIES, noise_image, tiny_model, tiny_processor
from vflowopt_search import budget
from vflowopt_search.adapters.registry import identity_of
from vflowopt_search.deploy import attached_engine, prune, pruned
from vflowopt_search.errors import StrategyError, UnsupportedError
from vflowopt_search.pruning.prefill import Prefill
from vflowopt_search.strategy import Budget, Importance, Recycling, Strategy

every_family = pytest.mark.parametrize("family", FAMILIES)
EVERYTHING = strategy_of(
    (0, 0.6), (3, 0.5), recycling=Recycling(cell=2.0), scores=[None, "text_attention"]
)


def traces(model: PreTrainedModel) -> dict[str, Any]:
    """Everything on a model and in transformers that an engine touches."""
    return {
        "hooks": [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "configs": [id(m.config) for m in model.modules() if hasattr(m, "config")],
        "functions": sorted(ALL_ATTENTION_FUNCTIONS.keys()),
    }


@every_family
def test_the_model_is_as_before_after_the_block(family: str) -> None:
    model, inputs = tiny_model(family), ragged_inputs(family)
    plain = generate(model, inputs)  # transformers installs hooks of its own at the first forward
    before = traces(model)
    with pruned(model, EVERYTHING):
        assert not torch.equal(generate(model, inputs).logits, plain.logits)
        assert traces(model) != before
    assert traces(model) == before
    assert torch.equal(generate(model, inputs).logits, plain.logits)


def test_the_model_is_as_before_after_an_exception() -> None:
    model, inputs = tiny_model("llava"), ragged_inputs("llava")
    plain = generate(model, inputs)  # transformers installs hooks of its own at the first forward
    before = traces(model)

    def fail(*_: Any) -> None:
        raise RuntimeError("stop in the middle of a forward")

    hook = model.model.language_model.layers[4].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"), pruned(model, EVERYTHING):
        generate(model, inputs)
    hook.remove()
    assert traces(model) == before
    assert torch.equal(generate(model, inputs).logits, plain.logits)


def test_prune_holds_until_removed() -> None:
    model, inputs = tiny_model("llava"), ragged_inputs("llava")
    plain = generate(model, inputs)
    handle = prune(model, EVERYTHING)
    assert handle.last is None
    assert not torch.equal(generate(model, inputs).logits, plain.logits)
    assert handle.last is not None
    handle.remove()
    handle.remove()
    assert torch.equal(generate(model, inputs).logits, plain.logits)


@every_family
def test_counts_are_those_of_the_budget(family: str) -> None:
    model, inputs = tiny_model(family), ragged_inputs(family)
    with pruned(model, EVERYTHING) as applied:
        generate(model, inputs)
    last = applied.last
    assert last is not None
    is_image = inputs["input_ids"] == model.config.image_token_id
    assert last.visual_tokens == is_image.sum(1).tolist()
    assert last.text_tokens == (inputs["attention_mask"].sum(1) - is_image.sum(1)).tolist()
    for tokens, per_layer in zip(last.visual_tokens, last.tokens_per_layer, strict=True):
        assert per_layer == budget.tokens_per_layer(EVERYTHING.stages, tokens, len(per_layer))
    for row, kept in enumerate(last.kept[3]):
        assert set(kept.tolist()) <= set(last.kept[0][row].tolist())
        assert is_image[row, kept].all()


def test_the_cache_holds_what_was_planned_and_answers_the_unpruned_length() -> None:
    model, inputs = tiny_model("llava"), ragged_inputs("llava")
    with torch.no_grad(), pruned(model, EVERYTHING) as applied:
        cache = model(**inputs).past_key_values
    last = applied.last
    assert last is not None
    for layer, held in enumerate(cache.layers):
        longest = max(
            text + visual[layer]
            for text, visual in zip(last.text_tokens, last.tokens_per_layer, strict=True)
        )
        assert held.get_seq_length() == longest
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


@every_family
@pytest.mark.parametrize("vision_layer", [0, 3])
def test_importance_is_that_of_the_eager_map(family: str, vision_layer: int) -> None:
    importance = Importance(vision_layer=vision_layer, context_threshold=1.2)
    model, inputs = tiny_model(family), ragged_inputs(family)
    expected = eager_importance(model, inputs, importance)
    call = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    with attached_engine(model, strategy_of((0, 0.5), importance=importance)) as engine:
        with torch.no_grad():
            model.model.get_image_features(**call)
        scores, _ = engine.scoring.vision_scores({"image": [len(one) for one in expected]})
    for mine, eager in zip(scores["received_attention"], expected, strict=True):
        torch.testing.assert_close(mine, eager, rtol=1e-5, atol=1e-5)


@every_family
def test_text_attention_is_that_of_the_eager_map(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Prefill] = []
    later_stage = Prefill.later_stage

    def watched(self: Prefill, number: int) -> None:
        seen.append(self)
        later_stage(self, number)

    monkeypatch.setattr(Prefill, "later_stage", watched)
    model, inputs = tiny_model(family, attn="eager"), ragged_inputs(family)
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
        with pruned(model, strategy_of((3, 0.5), scores=["text_attention"])):
            model(**inputs)
    attention_BS = maps[2].mean(1)[:, -1]
    for row, is_image in enumerate(inputs["input_ids"] == model.config.image_token_id):
        mine = seen[0].scores["text_attention"][row]
        torch.testing.assert_close(mine, attention_BS[row, is_image], rtol=1e-5, atol=1e-5)


@every_family
def test_a_row_does_not_depend_on_its_neighbours(family: str) -> None:
    model, inputs = tiny_model(family), ragged_inputs(family)
    with torch.no_grad(), pruned(model, EVERYTHING) as applied:
        together = model(**inputs).logits[:, -1]
        kept = [k.tolist() for k in applied.last.kept[3]] if applied.last else []
        for row in range(3):
            alone = {name: value[row : row + 1] for name, value in inputs.items()}
            logits = model(**alone).logits[:, -1]
            torch.testing.assert_close(logits[0], together[row], rtol=1e-4, atol=5e-5)
            assert applied.last is not None
            assert applied.last.kept[3][0].tolist() == kept[row]


@every_family
def test_beam_search_prunes_every_beam_alike(family: str) -> None:
    model, inputs = tiny_model(family), ragged_inputs(family)
    with pruned(model, EVERYTHING) as applied:
        together = generate(model, inputs, num_beams=3)
        assert applied.last is not None
        assert len(applied.last.visual_tokens) == 9
        for row in range(3):
            alone = {name: value[row : row + 1] for name, value in inputs.items()}
            steps = generate(model, alone, num_beams=3)  # type: ignore[arg-type]
            assert steps.ids[0].tolist() == together.ids[row].tolist()


def test_a_second_turn_goes_on_with_the_pruned_cache() -> None:
    model, inputs = tiny_model("llava_onevision"), ragged_inputs("llava_onevision")
    more = torch.randint(6, 60, (3, 4), generator=torch.Generator().manual_seed(3))
    ids = torch.cat([inputs["input_ids"], more], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(more)], dim=1)
    vision_only = strategy_of((0, 0.6), (3, 0.5), recycling=Recycling(cell=2.0))
    with torch.no_grad(), pruned(model, vision_only):
        cache = model(**inputs).past_key_values
        position_ids = (mask.cumsum(1) - 1)[:, -4:].clamp(min=0)
        second = model(
            input_ids=more, attention_mask=mask, position_ids=position_ids, past_key_values=cache
        ).logits[:, -1]
        call = dict(inputs) | {"input_ids": ids, "attention_mask": mask}
        # plain forward counts padding into positions; generate does not: give both the same
        whole_ids = (mask.cumsum(1) - 1).clamp(min=0)
        whole = model(**call, position_ids=whole_ids).logits[:, -1]
        first_ids = whole_ids[:, : inputs["input_ids"].shape[1]]
        cache = model(**inputs, position_ids=first_ids).past_key_values
        second = model(
            input_ids=more, attention_mask=mask, position_ids=position_ids, past_key_values=cache
        ).logits[:, -1]
    torch.testing.assert_close(second, whole, rtol=1e-4, atol=5e-5)


@every_family
def test_text_alone_passes_untouched(family: str) -> None:
    model, processor = tiny_model(family), tiny_processor(family)
    inputs = processor(text=list(QUESTIONS), padding=True, return_tensors="pt")
    plain = generate(model, inputs)
    with pruned(model, EVERYTHING) as applied:
        steps = generate(model, inputs)
    assert applied.last is None
    assert torch.equal(plain.logits, steps.logits)


def test_several_images_to_a_prompt() -> None:
    generator = torch.Generator().manual_seed(2)
    images = [noise_image(size, generator) for size in ((56, 40), (30, 30), (50, 70))]
    inputs = tiny_processor("llava_onevision")(
        text=["<image> <image> how many", "<image> what color is this"],
        images=[images[:2], images[2:]],
        padding=True,
        return_tensors="pt",
    )
    model = tiny_model("llava_onevision")
    with pruned(model, strategy_of((0, 0.5), recycling=Recycling(cell=2.0))) as applied:
        generate(model, inputs)
    assert applied.last is not None
    assert applied.last.visual_tokens[0] == 2 * 17  # two tiles of 16 with a newline each
    first_image = inputs["input_ids"][0].eq(model.config.image_token_id).nonzero()[:17, 0].tolist()
    for anchor, members in applied.last.recycled[0].items():
        assert len({p in first_image for p in [anchor, *members]}) == 1  # images never mix


def test_what_cannot_be_done_right_is_refused() -> None:
    inputs = ragged_inputs("llava")
    model: Any = tiny_model("llava")
    with torch.no_grad(), pruned(model, EVERYTHING):
        with pytest.raises(UnsupportedError, match="pruned already; leave the"):
            prune(model, EVERYTHING)
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        with pytest.raises(UnsupportedError, match="inputs_embeds without input_ids"):
            model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])
        cache = model(**inputs).past_key_values
        with pytest.raises(UnsupportedError, match="an image came after the first part"):
            model(**inputs, past_key_values=cache)
        with pytest.raises(UnsupportedError, match="no image was encoded inside"):
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])


def test_a_request_that_failed_leaves_nothing_for_the_next() -> None:
    model: Any = tiny_model("llava")
    inputs = ragged_inputs("llava")
    text = tiny_processor("llava")(text=list(QUESTIONS), padding=True, return_tensors="pt")
    plain = generate(model, text)
    call = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    with pruned(model, EVERYTHING):
        with torch.no_grad():
            model.model.get_image_features(**call)  # and then the request dies
        assert torch.equal(generate(model, text).logits, plain.logits)
        with torch.no_grad():
            model.model.get_image_features(pixel_values=inputs["pixel_values"][:1])
        after = generate(model, inputs)
    with pruned(model, EVERYTHING):
        assert torch.equal(generate(model, inputs).logits, after.logits)


def test_a_strategy_of_another_model_is_refused() -> None:
    model = tiny_model("llava")
    other = identity_of(tiny_model("llava_onevision"))
    wrong = Strategy.model_validate(EVERYTHING.model_dump() | {"model": other.model_dump()})
    with pytest.raises(StrategyError, match="llava_onevision"), pruned(model, wrong):
        pass


def test_a_stage_beyond_the_last_layer_is_refused() -> None:
    with (
        pytest.raises(StrategyError, match="has 6 decoder layers"),
        pruned(tiny_model("llava"), strategy_of((0, 0.5), (6, 0.5))),
    ):
        pass


def test_a_budget_that_the_stages_do_not_keep_is_refused() -> None:
    claims_less = strategy_of((0, 0.5), (3, 0.5), budget=Budget(mean_retained=0.25))
    with (
        pytest.raises(StrategyError, match=r"says that it retains 0.2500 but its stages keep 0.37"),
        pruned(tiny_model("llava"), claims_less),
    ):
        pass
    with pruned(
        tiny_model("llava"), strategy_of((0, 0.5), (3, 0.5), budget=Budget(mean_retained=0.375))
    ):
        pass


def test_text_attention_before_the_text_is_refused() -> None:
    first = strategy_of((0, 0.5), scores=["text_attention"])
    with (
        pytest.raises(StrategyError, match="before the language model no text has been read"),
        pruned(tiny_model("llava"), first),
    ):
        pass
