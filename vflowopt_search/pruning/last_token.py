"""The last decoder layer for the last token only, where nobody reads the others.

Every token of the last layer gives keys and values, but only the last one's output is read. What a
layer computes token by token behind the attention, its output projection and its feed-forward,
is therefore run on one token; where the result is added to the residual stream, that of the last
token is right and that of the others, which nobody reads, is not.

The queries and the attention of that layer run for all tokens: families shape queries and what the
attention gives by the length of the layer's input, so that fewer would have to be taken out and
put back inside of each family's own code, for one of L layers' attention.

Shape suffixes: B = samples, S = sequence, D = hidden width, L = decoder layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from vflowopt_search.pruning.anatomy import Anatomy

FEED_FORWARD = ("mlp", "feed_forward")
PROJECTION = ("o_proj", "dense", "out_proj", "wo")


@contextmanager
def last_token_only(anatomy: Anatomy) -> Iterator[None]:
    """Run what can be run on one token alone so, inside the `with` block.

    Prompts must be left-padded. A layer whose parts have other names than usual runs whole.
    """
    with ExitStack() as stack:
        for module in token_by_token(anatomy):
            stack.callback(module.register_forward_pre_hook(_last).remove)
        yield


def token_by_token(anatomy: Anatomy) -> list[nn.Module]:
    """The parts of the last decoder layer that work on each token alone."""
    if anatomy.last_layer_whole:
        return []
    layer = anatomy.decoder_layers[-1]
    attention = anatomy.decoder_attention(len(anatomy.decoder_layers) - 1)
    return [*_named(layer, FEED_FORWARD), *_named(attention, PROJECTION)]


def _named(parent: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    children = dict(parent.named_children())
    return [children[name] for name in names if name in children]


def _last(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The last token of (B, S, D); None, which changes nothing, for any other shape."""
    if not args or args[0].ndim != 3:
        return None
    return (args[0][:, -1:], *args[1:])
