"""A pretended accelerator: tensors on it compute as on the CPU, but never mix with the CPU's.

What nothing on a CPU can notice, a tensor that was left behind, fails here as it does on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
"""What tensors on it call their device: one that torch knows everywhere and has no guards for."""
CROSSES = ("aten::copy_", "aten::_to_copy")
WITH_CPU_INDICES = "aten::index"
FROM_VALUES = (torch.tensor, torch.as_tensor)


class Held(Tensor):
    """A tensor on the pretended accelerator; `content` holds its values."""

    content: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> Held:
        held: Held = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        held.content = inner
        return held

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _compute(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Held({self.content})"

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.unbind(0))

    def tolist(self) -> Any:
        return self.content.tolist()

    def new_tensor(self, *args: Any, **kwargs: Any) -> Tensor:
        return Held(self.content.new_tensor(*args, **kwargs))

    def numpy(self, **_: Any) -> Any:
        raise TypeError("the values are on the accelerator; bring them to the CPU first")


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the values; RuntimeError where tensors of both devices meet."""
    name = func._schema.name
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    held = [one for one in tensors if isinstance(one, Held)]
    others = [one for one in tensors if not isinstance(one, Held) and one.dim() and one.numel()]
    if held and others and name not in CROSSES and not name.startswith(WITH_CPU_INDICES):
        shapes = [tuple(one.shape) for one in others]
        raise RuntimeError(f"{name} was given tensors on two devices; on the CPU are {shapes}")
    asked = kwargs.get("device")
    inner_args, inner_kwargs = tree_map(_inner, args), tree_map(_inner, kwargs)
    out = func(*inner_args, **{**inner_kwargs, **({"pin_memory": False} if asked else {})})
    if func._schema.is_mutable and isinstance(args[0], Tensor):
        return args[0]
    stays = bool(held) if asked is None else torch.device(asked) == DEVICE
    return tree_map(_held, out) if stays else out


def _inner(value: Any) -> Any:
    if isinstance(value, Held):
        return value.content
    if isinstance(value, torch.device) and value == DEVICE:
        return torch.device("cpu")
    return value


def _held(value: Any) -> Any:
    return Held(value) if isinstance(value, Tensor) and not isinstance(value, Held) else value


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sends every operation through `_compute`, also one that only names the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _FromValues(TorchFunctionMode):
    """Makes tensors of Python's numbers, whose values torch drops on this device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        asked = kwargs.get("device")
        if func in FROM_VALUES and asked is not None and torch.device(asked) == DEVICE:
            values = tree_map(lambda one: one.tolist() if isinstance(one, Held) else one, args)
            return func(*values, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


@contextmanager
def accelerator(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that has the accelerator, inside the `with` block."""
    patch.setattr(torch, "inference_mode", torch.no_grad)  # which wrapped tensors cannot enter
    patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    operations = _Operations()  # type: ignore[no-untyped-call]
    with torch.no_grad(), operations, _FromValues():
        yield


def on_accelerator(model: Any) -> Any:
    """A copy of a model with all its tensors on the accelerator."""
    copied = deepcopy(model)
    for module in copied.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                held = nn.Parameter(Held(parameter.data), requires_grad=False)
                module._parameters[name] = held
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = None if buffer is None else Held(buffer)
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                setattr(module, name, Held(value))
    return copied
