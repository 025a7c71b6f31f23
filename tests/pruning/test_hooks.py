"""Hooks that come and go while several threads and several engines share a process."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.contract.oracle import generate
from tests.pruning.oracle import ragged_inputs, strategy_of
from tests.tiny import tiny_model
from vflowopt_search.deploy import attached_engine, prune, pruned
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.pruning.hooks import Switched, before, eagerly


def in_a_thread(work: Any) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def switched() -> tuple[Switched, nn.Module]:
    module = nn.Identity()
    return Switched(before, {module: lambda *_: None}), module


def is_on(module: nn.Module) -> bool:
    return bool(module._forward_pre_hooks)


def test_hooks_are_on_while_any_thread_wants_them() -> None:
    hooks, module = switched()
    hooks.switch(on=True)
    in_a_thread(lambda: hooks.switch(on=False))
    assert is_on(module)
    hooks.switch(on=False)
    assert not is_on(module)


def test_a_thread_that_ended_wants_nothing() -> None:
    hooks, module = switched()
    in_a_thread(lambda: hooks.switch(on=True))
    assert is_on(module)
    hooks.switch(on=False)
    assert not is_on(module)


def test_off_is_for_all() -> None:
    hooks, module = switched()
    hooks.switch(on=True)
    hooks.off()
    assert not is_on(module)
    hooks.switch(on=True)
    assert is_on(module)


def test_a_layer_met_while_another_thread_switches_is_left_alone() -> None:
    """torch calls a hook without keyword arguments when its mark is gone already."""
    model = tiny_model("llava")
    with attached_engine(model, strategy_of((2, 0.5), scores=["random"])) as engine:
        assert engine.before_layer(2, model, (torch.zeros(1, 3, 4),)) is None


@pytest.fixture
def compiled() -> Iterator[list[Any]]:
    """The graphs of `unrelated` that were compiled, in a process that has compiled nothing yet."""
    torch.compiler.reset()
    yield []
    torch.compiler.reset()


def unrelated(graphs: list[Any]) -> Any:
    """A compiled function that has nothing to do with any model."""

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return torch.compile(torch.sin, backend=backend)


def test_eagerness_ends_with_the_last_engine_in_any_order(compiled: list[Any]) -> None:
    sine, first, second = unrelated(compiled), eagerly(), eagerly()
    first.__enter__()
    second.__enter__()
    sine(torch.ones(3))
    first.__exit__(None, None, None)
    sine(torch.ones(3))
    assert not compiled
    second.__exit__(None, None, None)
    sine(torch.ones(3))
    assert len(compiled) == 1


def test_other_compiled_code_runs_eagerly_meanwhile_unless_told_otherwise(
    compiled: list[Any],
) -> None:
    """What the docstrings of `pruned` and `prune`, and the README's limits, say."""
    model, sine = tiny_model("llava"), unrelated(compiled)
    handle = prune(model, strategy_of((0, 0.5), scores=["random"]))
    assert torch.equal(sine(torch.ones(3)), torch.ones(3).sin())
    assert not compiled
    with torch.compiler.set_stance("default"):
        sine(torch.ones(3))
        assert len(compiled) == 1
    sine(torch.ones(5, 5))  # another shape would have been compiled anew
    assert len(compiled) == 1
    handle.remove()
    sine(torch.ones(5, 5))
    assert len(compiled) == 2


def test_two_handles_may_be_removed_in_any_order() -> None:
    one, other = tiny_model("llava"), tiny_model("llava_onevision")
    strategy = strategy_of((0, 0.5), scores=["random"])
    first, second = prune(one, strategy), prune(other, strategy)
    first.remove()
    with torch.no_grad():
        other(**ragged_inputs("llava_onevision"), use_cache=False)
    assert second.last is not None
    assert second.last.tokens_per_layer[0][0] < second.last.visual_tokens[0]
    second.remove()


def test_a_pruned_model_is_saved_as_it_is_but_not_copied(tmp_path: Path) -> None:
    model, inputs = tiny_model("llava"), ragged_inputs("llava")
    plain = generate(model, inputs)
    with pruned(model, strategy_of((0, 0.5), scores=["random"])):
        with pytest.raises(UnsupportedError, match="take the strategy off"):
            copy.deepcopy(model)
        with pytest.raises(UnsupportedError, match="take the strategy off"):
            torch.save(model, tmp_path / "model.pt")
        model.save_pretrained(tmp_path)
    for other in (copy.deepcopy(model), type(model).from_pretrained(tmp_path)):
        assert torch.equal(generate(other, inputs).logits, plain.logits)


@pytest.mark.parametrize("held", ["handle", "import builtins; builtins.until_the_very_end"])
def test_a_program_that_ends_with_a_strategy_on_ends_in_silence(held: str) -> None:
    program = (
        "from tests.tiny import tiny_model;"
        "from tests.pruning.oracle import strategy_of;"
        "from vflowopt_search import prune;"
        f"{held} = prune(tiny_model('llava'), strategy_of((0, 0.5)));"
        "print('done')"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")
