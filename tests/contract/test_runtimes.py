"""However a model is run (compiled, in bf16, dispatched, in int8), it is pruned, and rightly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from tests.contract.models import inputs_of, model_of
from tests.contract.oracle import Steps, generate, masked_logits
from tests.contract.test_removal import FP32, strategy_for
from tests.families import TinyFamily, tiny
from tests.pruning.oracle import strategy_of
from tests.tiny import text_sizes
from vflowopt_search.deploy import pruned
from vflowopt_search.pruning.record import LastPrefill
from vflowopt_search.strategy import Importance, Strategy

# transformers annotates these in part only
_AutoModel: Any = AutoModelForImageTextToText
_BitsAndBytesConfig: Any = BitsAndBytesConfig
WINDOW = 9  # tokens; less than any prompt has
OFFLOADED = ("llava", "qwen3_vl", "gemma3-window")


def strategy(name: str, positions: str = "original") -> Strategy:
    """Stages at layers 0 and 3, with recycling."""
    return strategy_for(name, "0+3", recycling=True, positions=positions)


def pruned_steps(name: str, model: Any, dtype: torch.dtype) -> tuple[Steps, LastPrefill]:
    """What a pruned model says, and what was removed."""
    with pruned(model, strategy(name)) as applied:
        steps = generate(model, inputs_of(name, dtype))
    last = applied.last
    assert last is not None
    assert last.tokens_per_layer[0][-1] < last.visual_tokens[0]
    return steps, last


def logits_of(model: Any, name: str) -> Tensor:
    """The last logits of every prompt."""
    with torch.no_grad():
        logits: Tensor = model(**inputs_of(name), use_cache=False).logits[:, -1]
    return logits


def compiled_whole(model: Any) -> Any:
    """The forward of the whole model is compiled."""
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compiled_backbone(model: Any) -> Any:
    """The forward of the backbone is compiled."""
    backbone = model.model.language_model
    backbone.forward = torch.compile(backbone.forward, backend="eager")
    return model


def compiled_in_place(model: Any) -> Any:
    """`Module.compile` was called."""
    model.compile(backend="eager")
    return model


def compiled_wrapper(model: Any) -> Any:
    """The user goes on with the wrapper that `torch.compile` returns."""
    return torch.compile(model, backend="eager")


def compiled_around(model: Any) -> Any:
    """The user compiled a function that calls the model."""
    return torch.compile(lambda **inputs: model(**inputs), backend="eager")


COMPILED = (
    *(compiled_whole, compiled_backbone, compiled_in_place),
    *(compiled_wrapper, compiled_around),
)


# What transformers hands to torch.compile warns of deprecated things.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", COMPILED)
def test_a_compiled_model_is_pruned(compiled: Callable[[Any], Any], name: str = "llava") -> None:
    # one stage inside the decoder, no cache, no attention recorded: nothing asks for a new graph
    plan = strategy_of((3, 0.5), importance=Importance(score="uniform"))
    model = copy.deepcopy(model_of(name))
    plain = logits_of(model, name)
    with pruned(model, plan):
        expected = logits_of(model, name)
    called = compiled(model)
    torch.testing.assert_close(logits_of(called, name), plain, rtol=0, atol=FP32)
    with pruned(model, plan) as applied:
        assert torch.equal(logits_of(called, name), expected)
        assert applied.last is not None
    torch.testing.assert_close(logits_of(called, name), plain, rtol=0, atol=FP32)
    torch._dynamo.reset()


def windowed(base: TinyFamily, text: Callable[..., PreTrainedConfig], **more: Any) -> TinyFamily:
    """A variant whose decoder looks back a few tokens only."""

    def config() -> PreTrainedConfig:
        made: Any = base.config()
        made.text_config = text(
            **text_sizes(made.text_config.vocab_size), sliding_window=WINDOW, **more
        )
        return made  # type: ignore[no-any-return]

    return replace(base, name=f"{base.name}-window", config=config)


EVERY_OTHER: dict[str, Any] = {
    "use_sliding_window": True,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}
WINDOWED = {
    "mistral": windowed(tiny("llava"), MistralConfig),
    "qwen2": windowed(tiny("llava_onevision"), partial(Qwen2Config, **EVERY_OTHER)),
    "internvl": windowed(tiny("internvl"), partial(Qwen2Config, **EVERY_OTHER)),
}


@pytest.mark.parametrize("which", WINDOWED)
@pytest.mark.parametrize("stages", ["0", "0+1", "0+3"])
def test_a_sliding_window_spans_the_tokens_that_are_left(which: str, stages: str) -> None:
    family = WINDOWED[which]
    model, inputs = family.model(), family.inputs(torch.float32)
    base = family.name.removesuffix("-window")
    plan = strategy_for(base, stages, recycling=True, positions="original")
    with pruned(model, plan) as applied:
        steps = generate(model, inputs)
    assert applied.last is not None
    masked = masked_logits(family, model, inputs, steps.ids, applied.last, plan)
    torch.testing.assert_close(steps.logits, masked, rtol=0, atol=FP32)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl", "llama4"])
def test_bf16_keeps_about_the_same_tokens(name: str) -> None:
    full, full_last = pruned_steps(name, model_of(name), torch.float32)
    half, half_last = pruned_steps(name, model_of(name, dtype=torch.bfloat16), torch.bfloat16)
    assert half.logits.dtype == torch.bfloat16
    assert half.logits.isfinite().all()
    assert half_last.tokens_per_layer == full_last.tokens_per_layer
    for mine, expected in zip(half_last.kept[3], full_last.kept[3], strict=True):
        common = set(mine.tolist()) & set(expected.tolist())
        assert len(common) >= 0.7 * len(expected)
    # the prefill; afterwards the answers may part
    gap = (half.logits[:, 0].float() - full.logits[:, 0]).abs().mean()
    assert float(gap) < 0.2 * float(full.logits.std())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The shared models, saved."""

    def saved(name: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / "checkpoints" / name
        if not folder.exists():
            model_of(name).save_pretrained(folder)
        return folder

    return saved


def device_map(model: Any, place: str) -> dict[str, str]:
    """Everything on the CPU, but every other decoder layer offloaded to `place`."""
    modules = model.named_modules()
    layers = [name for name, one in modules if type(one).__name__.endswith("DecoderLayer")]
    placed = dict.fromkeys(layers[::2], place)
    above = {name[:end] for name in placed for end, sign in enumerate(name) if sign == "."} | {""}
    for name in above:
        for child, _ in model.get_submodule(name).named_children():
            path = f"{name}.{child}".lstrip(".")
            if path not in above:
                placed.setdefault(path, "cpu")
    return placed


@pytest.mark.parametrize("name", OFFLOADED)
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_model_dispatched_by_accelerate(
    name: str, place: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    expected, last = pruned_steps(name, model_of(name), torch.float32)
    model = _AutoModel.from_pretrained(
        checkpoints(name),
        device_map=device_map(model_of(name), place),
        offload_folder=tmp_path,
        dtype=torch.float32,
    ).eval()
    model.generation_config = model_of(name).generation_config
    steps, mine = pruned_steps(name, model, torch.float32)
    assert mine.tokens_per_layer == last.tokens_per_layer
    torch.testing.assert_close(steps.logits, expected.logits, rtol=0, atol=FP32)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_an_int8_model(name: str, checkpoints: Callable[[str], Path]) -> None:
    settings = _BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    model = _AutoModel.from_pretrained(
        checkpoints(name), quantization_config=settings, device_map={"": "cpu"}
    ).eval()
    model.generation_config = model_of(name).generation_config
    assert any(type(module).__name__ == "Linear8bitLt" for module in model.modules())
    steps, last = pruned_steps(name, model, torch.float32)
    inputs = inputs_of(name)
    masked = masked_logits(tiny(name), model, inputs, steps.ids, last, strategy(name))
    # activations are rounded token by token; noise in the last bit may round one the other way
    torch.testing.assert_close(steps.logits, masked, rtol=0, atol=0.02)
