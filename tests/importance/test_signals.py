from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.importance.batches import Image, as_stored, eager_map, make_geometry, make_signals
from vflowopt_search.errors import UnsupportedError
from vflowopt_search.importance.signals import (
    ProjectedAttention,
    TileAttention,
    VisualSignals,
)

Form = Callable[[ProjectedAttention], TileAttention]
FORMS: list[Form] = [lambda attention: attention, as_stored]
every_form = pytest.mark.parametrize("form", FORMS, ids=["projected", "stored"])
every_prefix = pytest.mark.parametrize("prefix", [0, 1, 4])


def projections(prefix: int) -> ProjectedAttention:
    generator = torch.Generator().manual_seed(prefix)
    query_THQD = torch.randn(3, 2, prefix + 9, 4, generator=generator) * 2
    key_THQD = torch.randn(3, 2, prefix + 9, 4, generator=generator) * 2
    return ProjectedAttention(query_THQD, key_THQD, 0.5, prefix)


def make_context(attention: TileAttention) -> Tensor:
    """The most attended: six patches of the first tile, one of the second, all of the third."""
    rank_TP = attention.received().argsort(-1, descending=True).argsort(-1)
    return rank_TP < torch.tensor([[6], [1], [9]])


@every_form
@every_prefix
def test_received_is_the_mean_over_all_queries_of_the_eager_map(form: Form, prefix: int) -> None:
    projected = projections(prefix)
    attention = form(projected)
    map_TQQ = eager_map(projected.query_THQD, projected.key_THQD, projected.scale)
    torch.testing.assert_close(attention.received(), map_TQQ.mean(1)[:, prefix:], rtol=0, atol=1e-6)


@every_form
@every_prefix
def test_relevance_is_the_mean_over_the_context_of_the_eager_map(form: Form, prefix: int) -> None:
    projected = projections(prefix)
    attention = form(projected)
    context_TP = make_context(attention)
    map_TQQ = eager_map(projected.query_THQD, projected.key_THQD, projected.scale)
    expected = [
        map_QQ[prefix:][context_P].mean(0)[prefix:]
        for map_QQ, context_P in zip(map_TQQ, context_TP, strict=True)
    ]
    torch.testing.assert_close(
        attention.relevance(context_TP), torch.stack(expected), rtol=0, atol=1e-6
    )


@every_form
def test_double_precision_stays_double(form: Form) -> None:
    single = projections(1)
    attention = form(
        ProjectedAttention(
            single.query_THQD.double(), single.key_THQD.double(), single.scale, single.prefix
        )
    )
    assert attention.received().dtype == torch.float64
    assert attention.relevance(make_context(attention)).dtype == torch.float64


def test_tiles_go_to_the_tokens_of_their_own_image() -> None:
    signals = make_signals(Image(0, 1), Image(1, 3), Image(2, 2))
    tile_TP = torch.arange(6.0)[:, None].expand(6, 9)
    tokens = signals.to_tokens([tile_TP])
    assert [len(token_N) for token_N in tokens] == [12, 36, 24]
    grids = [image.grid for image in signals.images]
    first_tile = [0, 1, 4]
    for token_N, grid, first in zip(tokens, grids, first_tile, strict=True):
        seen = token_N[~grid.separator_N]
        assert torch.equal(seen, (grid.view_N[~grid.separator_N] + first).float())


@pytest.mark.parametrize("kept", ["attention", "entropy", "text_attention"])
def test_only_hides_what_is_not_declared(kept: str) -> None:
    everything = make_signals(Image(0, 1))
    seen = everything.only(frozenset({kept}))
    fields = {"attention": "attention", "entropy": "entropy", "text_attention": "text_attention"}
    for name, field in fields.items():
        expected = getattr(everything, field) if name == kept else None
        assert getattr(seen, field) is expected
    assert seen.images is everything.images


@pytest.mark.parametrize("name", ["attention", "entropy", "text_attention"])
def test_a_missing_signal_is_refused_by_name(name: str) -> None:
    nothing = VisualSignals(images=(make_geometry(1),))
    assert nothing.only(frozenset()).images == nothing.images
    with pytest.raises(UnsupportedError, match=f"signal '{name}' is not available.*choose a score"):
        nothing.only(frozenset({name}))


def test_scores_do_not_load_transformers() -> None:
    script = (
        "import sys, vflowopt_search.importance.registry, vflowopt_search.divergence\n"
        "print({'transformers', 'optuna', 'torch'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "{'torch'}"
