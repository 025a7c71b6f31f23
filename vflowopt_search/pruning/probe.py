"""See the queries and keys of one attention module without changing what it computes."""

from __future__ import annotations

import copy
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Observe = Callable[[Tensor, Tensor, float], None]
"""Called with query_BHQD, key_BHND (as attention sees them: after norms and rotation) and scale."""

EAGER = "eager_attention_forward"
"""What transformers calls a file's plain attention, perhaps with something before it."""

_numbers = count()


@contextmanager
def attention_probe(module: nn.Module, observe: Observe) -> Iterator[None]:
    """Call `observe` at every forward of the attention `module`, inside the `with` block only.

    The module gets a copy of its config that names an attention function of ours; that function
    hands queries and keys to `observe` and delegates to the implementation the model uses. The
    name is taken out of transformers' table again when the block ends. The table is everybody's,
    so that `observe`, which knows the model, is kept by the module.

    Args:
        module: a transformers attention module that reads `self.config._attn_implementation`.
        observe: receives query (B, H, Q, D), key (B, H or fewer, N, D) and the softmax scale.
    """
    original: Any = module.config
    implementation = original._attn_implementation
    name = f"vflowopt_probe_{next(_numbers)}"
    functions, owner = functions_of(module), weakref.ref(module)

    def probed(
        attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        scale = kwargs.get("scaling")
        see: Observe = getattr(owner(), name)
        see(query, key, query.shape[-1] ** -0.5 if scale is None else float(scale))
        delegate = functions.get_interface(implementation, eager_of(attention))
        return delegate(attention, query, key, value, *args, **kwargs)

    probed_config = copy.copy(original)
    probed_config._attn_implementation_internal = name
    functions[name] = probed
    object.__setattr__(module, name, observe)
    module.config = probed_config
    try:
        yield
    finally:
        module.config = original
        object.__delattr__(module, name)
        del functions[name]


def functions_of(module: nn.Module) -> Any:
    """The table of attention functions that the module's file looks into."""
    home = sys.modules[type(module).__module__]
    return getattr(home, "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)


def eager_of(module: nn.Module) -> Callable[..., Any] | None:
    """The eager attention function that the module falls back to, from the file of its class."""
    home = sys.modules[type(module).__module__]
    # llama4's file has one of its own for vision
    used = inspect.unwrap(type(module).forward).__code__.co_names
    names = [name for name in used if name.endswith(EAGER)]
    return getattr(home, names[0] if names else EAGER, None)
