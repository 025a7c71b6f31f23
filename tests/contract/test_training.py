"""Every family: a pruned model trains on the tokens that are left; loss and gradients are right.

Shape suffixes: B = rows, S = sequence, N = predictions, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.contract.models import every_family, inputs_of, model_of
from tests.contract.oracle import forbidding, visual_tokens
from tests.contract.test_removal import FP32, strategy_for
from tests.families import older_transformers
from tests.pruning.oracle import strategy_of
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.deploy import pruned
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.pruning.training import IGNORED
from vflowopt_search.strategy import Strategy

GRADIENTS = ("llava_onevision", "gemma3", "qwen3_vl")
TOWERS = ("vision", "visual", "tower", "sam", "siglip")


@contextmanager
def training(name: str, dtype: torch.dtype = torch.float32) -> Iterator[Any]:
    """The shared model in training mode; afterwards it is as before."""
    model = model_of(name, "sdpa", dtype)
    model.train()
    for module in model.modules():
        if "Drop" in type(module).__name__:  # it would draw anew for the reference
            module.eval()
    try:
        yield model
    finally:
        model.zero_grad(set_to_none=True)
        checkpointing(model, "disable")
        model.eval()


def checkpointing(model: Any, what: str, *options: Any) -> None:
    """Switch gradient checkpointing; transformers 5.23 calls it another name than 5.17."""
    found = getattr(model, f"activation_checkpointing_{what}", None)
    (found or getattr(model, f"gradient_checkpointing_{what}"))(*options)


def strategy(name: str) -> Strategy:
    """Stages at layers 0 and 3, with recycling."""
    return strategy_for(name, "0+3", recycling=True, positions="original")


def samples(
    name: str, dtype: torch.dtype = torch.float32, *, side: str = "right"
) -> dict[str, Any]:
    """A batch to train on: every token of text is to be learned; padded on this side."""
    inputs = dict(inputs_of(name, dtype))
    if side == "right":
        inputs = {key: rolled(inputs, value) for key, value in inputs.items()}
    ids = inputs["input_ids"]
    learned = inputs["attention_mask"].bool() & ~visual_tokens(adapter_for(model_of(name)), ids)
    return inputs | {"labels": torch.where(learned, ids, IGNORED)}


def rolled(inputs: dict[str, Any], value: Tensor) -> Tensor:
    """A tensor with one value per token, its padding moved from the left to the right."""
    mask_BS = inputs["attention_mask"]
    if value.shape != mask_BS.shape:
        return value
    pads = (mask_BS == 0).sum(1).tolist()
    return torch.stack([row.roll(-pad) for row, pad in zip(value, pads, strict=True)])


def masked_loss(model: Any, batch: dict[str, Any], last: LastPrefill, plan: Strategy) -> Tensor:
    """The loss over the living tokens, each predicted by the living one before it."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with forbidding(model, inputs, inputs["input_ids"].shape[1], last, plan) as alive_LBS:
        logits_BSV = model(**inputs, use_cache=False).logits
    said_NV, learned_N = [], []
    for logits_SV, labels_S, alive_S in zip(
        logits_BSV, batch["labels"], alive_LBS[-1], strict=True
    ):
        said_NV.append(logits_SV[alive_S][:-1])
        learned_N.append(labels_S[alive_S][1:])
    return cross_entropy(torch.cat(said_NV), torch.cat(learned_N), ignore_index=IGNORED)


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of each parameter that has one."""
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def last_of(applied: Any) -> LastPrefill:
    """What happened in the last prefill."""
    last: LastPrefill | None = applied.last
    assert last is not None
    return last


@every_family
def test_loss_is_that_of_the_masked_model(name: str) -> None:
    batch, plan = samples(name), strategy(name)
    with training(name) as model:
        with pruned(model, plan) as applied:
            loss = model(**batch).loss
            last = last_of(applied)
        found = gradients(model, loss)
        with torch.no_grad():
            expected = masked_loss(model, batch, last, plan)
    torch.testing.assert_close(loss.detach(), expected, rtol=0, atol=FP32)
    tower = [grad for key, grad in found.items() if any(word in key for word in TOWERS)]
    for grad in (*tower, found[embedding_of(model)]):
        assert grad.isfinite().all()
    assert any(grad.abs().max() > 0 for grad in tower)


def embedding_of(model: Any) -> str:
    """The name of the weight of the token embedding."""
    weight = model.get_input_embeddings().weight
    names: list[str] = [name for name, p in model.named_parameters() if p is weight]
    return names[0]


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # transformers takes norms in fp32 also where the rest is fp64
    [(torch.float32, 1e-4), (torch.float64, 1e-6)],
    ids=["fp32", "fp64"],
)
def test_gradients_are_those_of_the_masked_model(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    batch, plan = samples(name, dtype), strategy(name)
    with training(name, dtype) as model:
        with pruned(model, plan) as applied:
            found = gradients(model, model(**batch).loss)
            last = last_of(applied)
        expected = gradients(model, masked_loss(model, batch, last, plan))
    assert found.keys() == expected.keys()
    for key, grad in found.items():
        torch.testing.assert_close(grad, expected[key], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(name: str, reentrant: bool) -> None:
    if reentrant and name == "qwen3_vl" and older_transformers():
        pytest.skip("transformers: hooks run inside the checkpoint, which may add no features")
    batch, plan = samples(name), strategy(name)
    with training(name) as model, pruned(model, plan):
        loss = model(**batch).loss
        expected = gradients(model, loss)
        checkpointing(model, "enable", {"use_reentrant": reentrant})
        again = model(**batch).loss
        other = model(**samples(name, side="left")).loss  # before the backward of the first
        found = gradients(model, again)
        assert torch.isfinite(other)
    torch.testing.assert_close(again, loss, rtol=0, atol=1e-6)
    assert found.keys() == expected.keys()
    for key, grad in found.items():
        torch.testing.assert_close(grad, expected[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", (*GRADIENTS, "paligemma"))
def test_a_batch_padded_on_the_left(name: str) -> None:
    batch, plan = samples(name, side="left"), strategy(name)
    with torch.no_grad(), training(name) as model:
        with pruned(model, plan) as applied:
            loss = model(**batch).loss
            last = last_of(applied)
        expected = masked_loss(model, batch, last, plan)
    torch.testing.assert_close(loss, expected, rtol=0, atol=FP32)


@pytest.mark.parametrize("name", GRADIENTS)
def test_keeping_everything_changes_no_loss(name: str) -> None:
    batch = samples(name, side="left")
    everything = strategy_of((0, 1.0), (3, 1.0), importance=strategy(name).importance)
    with torch.no_grad(), training(name) as model:
        plain = model(**batch).loss
        with pruned(model, everything):
            assert torch.equal(model(**batch).loss, plain)


def test_what_the_caller_gave_is_not_changed() -> None:
    batch = samples("llava")
    before = {key: value.clone() for key, value in batch.items()}
    with torch.no_grad(), training("llava") as model, pruned(model, strategy("llava")):
        model(**batch)
    for key, value in batch.items():
        assert torch.equal(value, before[key])
