"""The self-check passes on what is right; each check is seen to fail, and is named, where not."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import tiny
from tests.test_memory_errors import OUT_OF_MEMORY
from vflowopt_search.budget import kept_counts
from vflowopt_search.deploy import pruned
from vflowopt_search.errors import ModelError, UnsupportedError
from vflowopt_search.importance.signals import ProjectedAttention
from vflowopt_search.pruning import forward, prefill
from vflowopt_search.pruning.masks import LayerMasks
from vflowopt_search.pruning.single import PruningEngine
from vflowopt_search.selfcheck import check, inputs
from vflowopt_search.selfcheck.check import check_model
from vflowopt_search.selfcheck.report import Check, Report
from vflowopt_search.strategy import Importance, Stage, Strategy

WITH_PROCESSOR = ["llava", "llava_onevision", "qwen2_5_vl", "internvl", "gemma3", "paligemma"]


def processor_of(name: str) -> Any:
    made = tiny(name).processor
    assert made is not None
    return made()


# PaliGemma's own processor, and InternVL's of 5.17, use arrays the way numpy 2 complains of
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_passes_through_the_processor(name: str) -> None:
    report = check_model(tiny(name).model(), processor_of(name))
    assert [c for c in report.checks if not c.passed] == []
    assert "a noise image through" in report.inputs
    names = " ".join(c.name for c in report.checks)
    assert all(word in names for word in ("removed = masked", "eager map", "two prompts"))


@pytest.mark.parametrize("name", ["llama4", "llava"])
def test_passes_without_a_processor(name: str) -> None:
    report = check_model(tiny(name).model())
    assert [c for c in report.checks if not c.passed] == []
    assert report.inputs.endswith("for there is no processor")


@pytest.mark.parametrize("name", ["qwen3_vl-images+video", "llava-pixtral", "gemma3-images"])
def test_passes_on_a_ragged_batch_that_is_given(name: str) -> None:
    report = check_model(tiny(name).model(), tiny(name).inputs(torch.float32))
    assert [c for c in report.checks if not c.passed] == []
    assert report.inputs == "the inputs given"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_with_its_own_noise(dtype: torch.dtype) -> None:
    report = check_model(tiny("llava").model(dtype=dtype), processor_of("llava"))
    assert [c for c in report.checks if not c.passed] == []
    removal = [c for c in report.checks if "removed = masked" in c.name]
    assert all(5e-5 < c.limit <= 20 * torch.finfo(dtype).eps for c in removal)


def test_inputs_that_cannot_be_made_are_asked_for() -> None:
    with pytest.raises(UnsupportedError, match="qwen2_5_vl model cannot be checked without its pr"):
        check_model(tiny("qwen2_5_vl").model())


def test_a_pruned_model_is_not_checked() -> None:
    model = tiny("llava").model()
    half = Strategy(
        name="half", importance=Importance(score="random"), stages=(Stage(layer=0, keep_ratio=0.5),)
    )
    with pruned(model, half), pytest.raises(UnsupportedError, match="is pruned already"):
        check_model(model)


def count_hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_model_is_as_before() -> None:
    model = tiny("llava").model().train()
    check_model(model)  # transformers leaves hooks of its own behind when it generates
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks, config = count_hooks(model), model.config.to_dict()
    check_model(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config.to_dict() == config
    assert count_hooks(model) == hooks


# --- broken engines: name of the first check that must fail, and what breaks


def _positions_off(patch: pytest.MonkeyPatch) -> None:
    original = PruningEngine._shortened

    def shifted(self: Any, kwargs: dict[str, Any], run: Any) -> dict[str, Any]:
        changed = original(self, kwargs, run)
        return changed | {"position_ids": changed["position_ids"] // 2}

    patch.setattr(PruningEngine, "_shortened", shifted)


def _mask_off(patch: pytest.MonkeyPatch) -> None:
    original = LayerMasks.mask

    def blind(self: Any, segment: Any, layer: int, hidden: Tensor) -> Any:
        made = original(self, segment, layer, hidden)
        if hidden.shape[1] == 1 and segment.start == 1:  # where only the second strategy prunes
            made = torch.zeros(len(hidden), 1, 1, 1 + self.cache.layers[layer].get_seq_length())
            made[..., : made.shape[-1] // 2] = torch.finfo(hidden.dtype).min
        return made

    patch.setattr(LayerMasks, "mask", blind)
    patch.setattr(LayerMasks, "hide_nothing", lambda self, state, num_new: False)


def _touches_what_is_kept(patch: pytest.MonkeyPatch) -> None:
    _spoil_embeddings(patch, 1.0001)


def _spoil_embeddings(patch: pytest.MonkeyPatch, factor: float) -> None:
    original = PruningEngine._start

    def start(self: Any, kwargs: dict[str, Any], cache: Any, kinds: Any) -> Any:
        given = original(self, kwargs, cache, kinds)
        return given | {"inputs_embeds": given["inputs_embeds"] * factor}

    patch.setattr(PruningEngine, "_start", start)


def _keeps_one_more(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        prefill, "kept_counts", lambda stages, n: [min(n, c + 1) for c in kept_counts(stages, n)]
    )


def _infinite_scores(patch: pytest.MonkeyPatch) -> None:
    original = prefill.Prefill._scores_at

    def spoiled(self: Any, number: int) -> list[Tensor]:
        return [
            score_N.clone().index_fill_(0, torch.tensor([0]), math.inf)
            for score_N in original(self, number)
        ]

    patch.setattr(prefill.Prefill, "_scores_at", spoiled)


def _other_attention(patch: pytest.MonkeyPatch) -> None:
    original = ProjectedAttention.received
    patch.setattr(ProjectedAttention, "received", lambda self: original(self).roll(1, -1))


def _rows_mixed(patch: pytest.MonkeyPatch) -> None:
    original = forward.tokens_at

    def mixed(values: Tensor, positions: Tensor, index: Tensor) -> Any:
        return original(values.roll(1, 0), positions, index)

    patch.setattr("vflowopt_search.pruning.engine.tokens_at", mixed)


BROKEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "everything kept = unpruned, logits": _touches_what_is_kept,
    "before the decoder, received_attention: removed = masked, logits": _positions_off,
    "inside the decoder, text_attention: removed = masked, logits": _mask_off,
    "before the decoder, received_attention: cached tokens not planned": _keeps_one_more,
    "before the decoder, received_attention: scores not finite": _infinite_scores,
    "received attention = eager map": _other_attention,
    "two prompts: batch = one by one": _rows_mixed,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_engine_is_found_and_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BROKEN[name](monkeypatch)
    report = check_model(tiny("llava").model(), processor_of("llava"))
    assert next(c.name for c in report.checks if not c.passed) == name
    with pytest.raises(UnsupportedError, match=r"fails the self-check '.*': .*, where at most"):
        report.require()


def answers_by_batch(factor: float) -> Any:
    """A llava one of whose layers attends otherwise where it is not given one row alone."""
    model: Any = tiny("llava").model()
    attention = model.model.language_model.layers[1].self_attn
    attention.register_forward_hook(
        lambda module, args, out: (out[0] * (1 if len(out[0]) == 1 else factor), *out[1:])
    )
    return model


def test_a_model_that_answers_otherwise_in_a_batch_fails_whatever_pruning_does() -> None:
    report = check_model(answers_by_batch(3.0), processor_of("llava"))
    [failed] = [c for c in report.checks if not c.passed]
    assert failed == report.checks[-1]
    assert failed.name == "two prompts, unpruned: batch = one by one"
    assert failed.figure > failed.limit == check.MOST_OF_PADDING


def test_a_little_noise_of_batches_is_allowed_for() -> None:
    report = check_model(answers_by_batch(1.001), processor_of("llava"))
    assert [c for c in report.checks if not c.passed] == []
    unpruned, pruned_too = report.checks[-2:]
    assert 2.5e-4 < unpruned.figure < unpruned.limit
    assert pruned_too.limit == min(check.MOST_OF_PADDING, 4 * unpruned.figure)


def test_nan_is_never_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    _spoil_embeddings(monkeypatch, math.nan)
    report = check_model(tiny("llava").model(), processor_of("llava"))
    with pytest.raises(
        UnsupportedError,
        match="'everything kept = unpruned, logits': nan, where at most 0 is right",
    ):
        report.require()
    text = json.dumps(report.to_plain(), allow_nan=False)
    assert json.loads(text)["checks"][1]["figure"] is None


def test_features_that_do_not_come_back_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from vflowopt_search.adapters.llava import LlavaAdapter

    original = LlavaAdapter.encoded
    monkeypatch.setattr(
        LlavaAdapter, "encoded", lambda self, features: original(self, [f + 1 for f in features])
    )
    report = check_model(tiny("llava").model(), processor_of("llava"))
    failed = [c.name for c in report.checks if not c.passed]
    assert failed == ["measured as in a search: logits"]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("part", ["check.masked_logits", "inputs.encode_visuals"])
def test_out_of_memory_is_no_breakdown(
    part: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise error

    monkeypatch.setattr(f"vflowopt_search.selfcheck.{part}", full)
    with pytest.raises(ModelError, match=r"llava model ran out of memory on cpu; free") as told:
        check_model(tiny("llava").model())
    assert not isinstance(told.value, UnsupportedError)


def test_a_breakdown_is_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> None:
        raise KeyError("layer_types")

    monkeypatch.setattr(check, "masked_logits", broken)
    sentence = r"'everything kept = unpruned, answers that differ' \(KeyError: 'layer_types'\)"
    caplog.set_level(logging.DEBUG, "vflowopt_search")
    with pytest.raises(UnsupportedError, match=sentence):
        check_model(tiny("llava").model())
    assert "in broken" in caplog.text  # the whole traceback can be looked up


def test_the_noise_image_is_always_the_same() -> None:
    assert inputs.noise_image().tobytes() == inputs.noise_image().tobytes()


def test_a_report_in_plain_values() -> None:
    report = Report(
        "toy", "ToyAdapter", "noise", "cpu", "float32", (Check("one", 0.5, 1), Check("two", 2, 1))
    )
    plain = report.to_plain()
    assert not plain["passed"]
    assert [c["passed"] for c in plain["checks"]] == [True, False]
    with pytest.raises(UnsupportedError, match="this toy model fails the self-check 'two': 2, whe"):
        report.require()


def test_a_model_in_double_precision_passes() -> None:
    family = tiny("llava")
    assert family.processor is not None
    check_model(family.model(dtype=torch.float64), family.processor()).require()
