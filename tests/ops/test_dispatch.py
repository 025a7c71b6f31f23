from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest.mock import Mock, patch

import pytest
import torch

from vflowopt_search.ops import attention, dispatch, entropy, merge, select
from vflowopt_search.ops.select import Tokens

OPS: dict[str, ModuleType] = {
    "patch_entropy": entropy,
    "attention_received": attention,
    "text_attention": attention,
    "merge_tokens": merge,
    "select_tokens": select,
}
every_op = pytest.mark.parametrize("name", OPS)
GPU = torch.device("cuda:0")


@contextmanager
def a_gpu(capability: tuple[int, int], error: Exception | None = None) -> Iterator[None]:
    """As if there were one, on which the first launch goes well or raises `error`."""
    dispatch.why_no_kernels.cache_clear()
    with (
        patch.object(torch.cuda, "get_device_capability", return_value=capability),
        patch.object(dispatch, "_launch_one", side_effect=error),
    ):
        yield
    dispatch.why_no_kernels.cache_clear()


@every_op
def test_an_op_and_its_kernel_have_the_signature_of_the_definition(name: str) -> None:
    expected = inspect.signature(getattr(OPS[name], name))
    with a_gpu((9, 0)):
        kernels = dispatch.kernels_on.__wrapped__(GPU)
    assert inspect.signature(getattr(dispatch, name)) == expected
    assert inspect.signature(getattr(kernels, name)) == expected


@every_op
def test_on_the_cpu_an_op_is_its_definition(name: str) -> None:
    arguments = examples()[name]
    with patch.object(dispatch, "kernels_on", side_effect=AssertionError):
        answer = getattr(dispatch, name)(*arguments)
    expected = getattr(OPS[name], name)(*arguments)
    torch.testing.assert_close(answer, expected, rtol=0, atol=0)


class OnGpu(torch.Tensor):
    """A tensor that says that it lies on a GPU."""

    is_cuda = True


@every_op
def test_on_a_gpu_the_kernel_gets_what_the_definition_would(name: str) -> None:
    arguments = tuple(
        argument.as_subclass(OnGpu) if isinstance(argument, torch.Tensor) else argument
        for argument in examples()[name]
    )
    if name == "select_tokens":
        whole, index_BK = examples()[name]
        assert isinstance(whole, Tokens)
        arguments = (whole._replace(hidden_BND=whole.hidden_BND.as_subclass(OnGpu)), index_BK)
    kernels = Mock()
    with (
        patch.object(dispatch, "kernels_on", return_value=kernels),
        patch.object(torch.cuda, "device") as device,
    ):
        answer = getattr(dispatch, name)(*arguments)
    assert answer is getattr(kernels, name).return_value
    called_with = getattr(kernels, name).call_args.args
    assert all(one is other for one, other in zip(called_with, arguments, strict=True))
    device.assert_called_once_with(torch.device("cpu"))


def examples() -> dict[str, tuple[object, ...]]:
    hidden_BND = torch.randn(2, 5, 3)
    query_BHQD, key_BHND = torch.randn(2, 1, 2, 5, 3)
    valid_BN = torch.tensor([[False, True, True, True, True]])
    window_N = torch.tensor([0, 0, 1, 1, 1])
    group_N = torch.tensor([0, 1, -1, 0, 1])
    whole = Tokens(hidden_BND, torch.arange(10).view(1, 2, 5), hidden_BND[..., 0] > 0)
    return {
        "patch_entropy": (torch.arange(8, dtype=torch.uint8).view(2, 4),),
        "attention_received": (query_BHQD, key_BHND, 0.4, valid_BN, window_N),
        "text_attention": (query_BHQD[:, :, -1], key_BHND, 0.4, valid_BN),
        "merge_tokens": (hidden_BND[0], torch.rand(5), group_N, 2),
        "select_tokens": (whole, torch.tensor([[4, 0], [1, 1]])),
    }


def printed_by(program: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_without_triton_there_are_no_kernels() -> None:
    told = printed_by(
        "import sys, torch; sys.modules['triton'] = None\n"
        "from vflowopt_search.ops import dispatch\n"
        "torch.cuda.get_device_capability = lambda device: (9, 0)\n"
        "gpu = torch.device('cuda:0')\n"
        "print(dispatch.kernels_on(gpu), dispatch.why_no_kernels(gpu))\n"
    )
    assert told.startswith("None ModuleNotFoundError: ") and "triton" in told


def test_dispatch_loads_no_triton() -> None:
    loaded = printed_by(
        "import sys; from vflowopt_search.ops import dispatch; print(*sys.modules)"
    ).split()
    assert "vflowopt_search.ops.dispatch" in loaded
    assert "triton" not in loaded


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_a_gpu_before_ampere_has_no_kernels(capability: tuple[int, int]) -> None:
    with a_gpu(capability):
        kernels = dispatch.kernels_on.__wrapped__(GPU)
    assert (kernels is None) == (capability < (8, 0))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler.\nSpecify one"),
        OSError(2, "No such file or directory"),
        subprocess.CalledProcessError(1, ["gcc"]),  # without Python's headers
        ImportError("libcuda.so.1"),
    ],
)
def test_where_triton_cannot_launch_the_definitions_answer(error: Exception) -> None:
    with a_gpu((9, 0), error):
        assert dispatch.kernels_on.__wrapped__(GPU) is None
        told = dispatch.why_no_kernels(GPU)
    assert told == f"{type(error).__name__}: {str(error).splitlines()[0]}"


def test_a_kernel_is_launched_once_to_see_whether_it_goes() -> None:
    with a_gpu((9, 0), RuntimeError("Failed to find C compiler.")):
        launch: Mock = dispatch._launch_one  # type: ignore[assignment]
        for _ in range(3):
            assert dispatch.why_no_kernels(GPU) == "RuntimeError: Failed to find C compiler."
        launch.assert_called_once_with(GPU)


@pytest.mark.parametrize(
    ("first", "second", "weight", "taken"),
    [
        (torch.ones(1), torch.ones(1), None, True),
        (torch.ones(1).bfloat16(), torch.ones(1).bfloat16(), torch.ones(1), True),
        (torch.ones(1).bfloat16(), torch.ones(1), None, False),
        (torch.ones(1).double(), torch.ones(1).double(), None, False),
        (torch.ones(1), torch.ones(1), torch.ones(1).double(), False),
        (torch.ones(1), torch.ones(1, requires_grad=True), None, False),
        (torch.ones(1), torch.ones(1), torch.ones(1, requires_grad=True), False),
        (torch.ones(1), torch.ones(1), torch.ones(1, dtype=torch.bool), True),
    ],
)
def test_kernels_get_what_they_can_do(
    first: torch.Tensor, second: torch.Tensor, weight: torch.Tensor | None, taken: bool
) -> None:
    kernels = object()
    with patch.object(dispatch, "kernels_on", return_value=kernels):
        found = dispatch._kernels_for((first, second), weight)
        assert (found is kernels) == taken
        with torch.no_grad():
            assert dispatch._kernels_for((torch.ones(1, requires_grad=True),)) is kernels
