"""What a strategy keeps and costs: the laws, and the published table."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vflowopt_search.budget import (
    ModelShape,
    VisionShape,
    alive_ratios,
    close_budget,
    kept_counts,
    kv_bytes,
    mean_retained,
    prefill_flops,
    tokens_per_layer,
)
from vflowopt_search.errors import BudgetError
from vflowopt_search.resources import studies_folder
from vflowopt_search.strategy import Stage, Strategy

RATIO = st.floats(min_value=0, max_value=1, exclude_min=True)
RELATIVE = st.floats(min_value=1e-9, max_value=1)
NUM_TOKENS = st.integers(min_value=1, max_value=20_000)
DEPTH = 28
LAYERS = st.lists(st.integers(0, DEPTH - 1), min_size=1, max_size=5, unique=True).map(sorted)

QWEN2_7B = ModelShape(
    decoder_layers=28,
    hidden_size=3584,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    intermediate_size=18944,
    vocab_size=152064,
)
VISUAL, TEXT = 4400, 50


@st.composite
def stages(draw: st.DrawFn) -> list[Stage]:
    return [Stage(layer=k, keep_ratio=draw(RATIO)) for k in draw(LAYERS)]


def published(retained: str) -> tuple[Stage, ...]:
    folder = studies_folder() / "published"
    return Strategy.load(folder / f"llava-onevision-7b-{retained}.json").stages


# --- tokens


def test_tokens_by_hand() -> None:
    plan = [Stage(layer=1, keep_ratio=0.5), Stage(layer=3, keep_ratio=0.2)]
    assert alive_ratios(plan, 5) == [1.0, 0.5, 0.5, 0.1, 0.1]
    assert mean_retained(plan, 5) == pytest.approx(0.44)
    assert kept_counts(plan, 100) == [50, 10]
    assert tokens_per_layer(plan, 100, 5) == [100, 50, 50, 10, 10]
    assert kept_counts(plan, 3) == [2, 1]
    assert kept_counts(plan, 0) == [0, 0]


@given(stages(), NUM_TOKENS)
def test_each_layer_holds_within_half_a_token_of_its_share(
    plan: list[Stage], num_tokens: int
) -> None:
    counts = tokens_per_layer(plan, num_tokens, DEPTH)
    for count, alive in zip(counts, alive_ratios(plan, DEPTH), strict=True):
        assert abs(count - num_tokens * alive) <= 0.5 or count == 1 > num_tokens * alive


@given(stages(), NUM_TOKENS)
def test_counts_fall_from_all_to_no_less_than_one(plan: list[Stage], num_tokens: int) -> None:
    counts = [num_tokens, *tokens_per_layer(plan, num_tokens, DEPTH)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= 1


@given(stages(), st.integers(0, 20_000))
def test_stage_counts_are_the_layer_counts_at_the_stages(
    plan: list[Stage], num_tokens: int
) -> None:
    per_layer = tokens_per_layer(plan, num_tokens, DEPTH)
    assert kept_counts(plan, num_tokens) == [per_layer[stage.layer] for stage in plan]


@given(LAYERS, st.integers(0, 20_000))
def test_a_keep_ratio_of_one_keeps_all(layers: list[int], num_tokens: int) -> None:
    plan = [Stage(layer=k, keep_ratio=1.0) for k in layers]
    assert tokens_per_layer(plan, num_tokens, DEPTH) == [num_tokens] * DEPTH
    assert mean_retained(plan, DEPTH) == 1.0


@given(stages(), RATIO, st.data(), NUM_TOKENS)
def test_keeping_more_at_one_stage_never_keeps_fewer_anywhere(
    plan: list[Stage], ratio: float, data: st.DataObject, num_tokens: int
) -> None:
    at = data.draw(st.integers(0, len(plan) - 1))
    low, high = sorted((plan[at].keep_ratio, ratio))
    less, more = (
        [*plan[:at], Stage(layer=plan[at].layer, keep_ratio=r), *plan[at + 1 :]]
        for r in (low, high)
    )
    assert mean_retained(less, DEPTH) <= mean_retained(more, DEPTH)
    fewer = tokens_per_layer(less, num_tokens, DEPTH)
    assert all(
        a <= b for a, b in zip(fewer, tokens_per_layer(more, num_tokens, DEPTH), strict=True)
    )


@pytest.mark.parametrize(
    ("retained", "mean"), [("0.50", 0.5008), ("0.25", 0.2507), ("0.10", 0.1000)]
)
def test_published_strategies_retain_what_was_published(retained: str, mean: float) -> None:
    assert mean_retained(published(retained), 28) == pytest.approx(mean, abs=5e-5)


# --- closing a budget


def closed(layers: list[int], relative: list[float], retain: float) -> list[Stage]:
    ratios = close_budget(layers, relative, DEPTH, retain)
    return [Stage(layer=k, keep_ratio=r) for k, r in zip(layers, ratios, strict=True)]


@st.composite
def open_budgets(draw: st.DrawFn) -> tuple[list[int], list[float], float]:
    layers = draw(LAYERS)
    relative = draw(st.lists(RELATIVE, min_size=len(layers) - 1, max_size=len(layers) - 1))
    retain = draw(st.floats(layers[0] / DEPTH, 1, exclude_min=True))
    return layers, relative, retain


def test_a_budget_closed_by_hand() -> None:
    # A quarter of the depth at c, the rest at c / 2: 0.25 c + 0.375 c = 0.25.
    assert close_budget([0, 2], [0.5], 8, 0.25) == pytest.approx([0.4, 0.5])
    # Too much for c = 1 (0.625): the first stage keeps all, the second is lifted to 2/3.
    assert close_budget([0, 2], [0.5], 8, 0.75) == pytest.approx([1.0, 2 / 3])
    # One lifted ratio is clipped at 1, the other goes on rising.
    assert close_budget([0, 2, 4], [0.9, 0.3], 8, 0.75) == pytest.approx([1.0, 1.0, 0.5])


@given(open_budgets())
@example(([0, 1], [1e-9], 1.0))
@example(([0, 1], [1e-9], 0.5))
@example(([0], [], 5e-324))
@example(([27], [], 1.0))
def test_a_closed_budget_is_exact_and_within_range(
    budget: tuple[list[int], list[float], float],
) -> None:
    layers, relative, retain = budget
    assert abs(mean_retained(closed(layers, relative, retain), DEPTH) - retain) <= 1e-9


@given(open_budgets(), RATIO)
def test_a_larger_budget_never_lowers_a_ratio(
    budget: tuple[list[int], list[float], float], other: float
) -> None:
    layers, relative, retain = budget
    assume(other > layers[0] / DEPTH)
    low, high = sorted((retain, other))
    less = close_budget(layers, relative, DEPTH, low)
    more = close_budget(layers, relative, DEPTH, high)
    assert all(a <= b for a, b in zip(less, more, strict=True))


@given(open_budgets())
def test_only_the_first_ratio_is_scaled_down_and_later_ones_keep_their_proportion(
    budget: tuple[list[int], list[float], float],
) -> None:
    layers, relative, retain = budget
    first, *later = close_budget(layers, relative, DEPTH, retain)
    if first < 1:
        assert later == relative
    lifts = [kept / ratio for kept, ratio in zip(later, relative, strict=True) if kept < 1]
    assert all(lift >= 1 and lift == pytest.approx(lifts[0]) for lift in lifts)


@given(LAYERS, st.lists(RELATIVE, min_size=4, max_size=4))
def test_a_budget_of_one_keeps_everything(layers: list[int], ratios: list[float]) -> None:
    assert close_budget(layers, ratios[: len(layers) - 1], DEPTH, 1.0) == [1.0] * len(layers)


@given(stages())
def test_closing_the_budget_of_a_strategy_gives_the_strategy_back(plan: list[Stage]) -> None:
    assume(min(stage.keep_ratio for stage in plan) > 1e-6)
    layers = [stage.layer for stage in plan]
    relative = [stage.keep_ratio for stage in plan[1:]]
    again = close_budget(layers, relative, DEPTH, mean_retained(plan, DEPTH))
    assert again == pytest.approx([stage.keep_ratio for stage in plan], rel=1e-6)


@pytest.mark.parametrize("retain", [0.0, 2 / 28, -0.1, 1.0000001, float("nan")])
def test_a_budget_that_cannot_be_met_names_the_lowest(retain: float) -> None:
    sentence = r"cannot be met with the first stage at layer 2 of 28: it must be above 0\.07143 and"
    with pytest.raises(BudgetError, match=sentence):
        close_budget([2, 5], [0.5], 28, retain)


@pytest.mark.parametrize(
    ("layers", "relative", "sentence"),
    [
        ([0, 3], [], r"0 relative ratios are given for 2 stages, .*; give 1"),
        ([], [], r"0 relative ratios are given for 0 stages"),
        ([0, 3], [0.0], r"a relative ratio is 0\.0 but must be from 1e-09 to 1; correct it"),
        ([0, 3], [1.5], r"a relative ratio is 1\.5 but must be from 1e-09 to 1; correct it"),
        ([3, 3], [0.5], r"stages are at layers \[3, 3\] but layers must increase strictly from 0"),
        ([4, 3], [0.5], r"stages are at layers \[4, 3\] but layers must increase strictly from 0"),
        ([0, 28], [0.5], r"layers must increase strictly from 0 to 27; choose other layers"),
        ([-1, 3], [0.5], r"stages are at layers \[-1, 3\] but layers must increase strictly"),
    ],
)
def test_wrong_stages_are_refused(layers: list[int], relative: list[float], sentence: str) -> None:
    with pytest.raises(BudgetError, match=sentence):
        close_budget(layers, relative, 28, 0.5)


# --- cost


def decoder_flops(visual: list[int]) -> float:
    head = 2 * QWEN2_7B.hidden_size * QWEN2_7B.vocab_size
    return prefill_flops(QWEN2_7B, visual, TEXT) - head


def test_unpruned_flops_are_the_published_ones() -> None:
    every_position = prefill_flops(QWEN2_7B, [VISUAL] * 28, TEXT, lm_head="all")
    assert every_position / 1e12 == pytest.approx(71.4, rel=0.02)
    assert every_position / 1e12 == pytest.approx(70.9, abs=0.05)
    assert decoder_flops([VISUAL] * 28) / 1e12 == pytest.approx(66.0, abs=0.05)


@pytest.mark.parametrize(("retained", "share"), [("0.50", 0.481), ("0.25", 0.236), ("0.10", 0.098)])
def test_pruned_flops_of_the_published_strategies(retained: str, share: float) -> None:
    pruned = decoder_flops(tokens_per_layer(published(retained), VISUAL, 28))
    assert pruned / decoder_flops([VISUAL] * 28) == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize(
    ("retained", "megabytes", "share"),
    [("0.50", 903, 0.506), ("0.25", 461, 0.259), ("0.10", 197, 0.110)],
)
def test_kv_bytes_of_the_published_strategies(
    retained: str, megabytes: float, share: float
) -> None:
    visual = tokens_per_layer(published(retained), VISUAL, 28)
    full = kv_bytes(QWEN2_7B, [VISUAL] * 28, TEXT)
    assert kv_bytes(QWEN2_7B, visual, TEXT) / full == pytest.approx(share, rel=0.02)
    # The paper counts all 28 heads; a real cache shares keys and values among 7 of them.
    assert 7 * full / 1e6 == pytest.approx(1786, rel=0.02)
    assert 7 * kv_bytes(QWEN2_7B, visual, TEXT) / 1e6 == pytest.approx(megabytes, rel=0.02)


def test_costs_by_hand() -> None:
    shape = ModelShape(1, 2, 2, 1, 3, 5, 7, vision=VisionShape(2, 2, 3, 4))
    # Weights: q and o 2*2*6, k and v 2*2*3, feed-forward 3*2*5 = 66; attention 4*9*6 for 3 tokens.
    decoder = 2 * 66 * 3 + 4 * 9 * 6
    assert prefill_flops(shape, [2], 1) == decoder + 2 * 2 * 7
    assert prefill_flops(shape, [2], 1, lm_head="all") == decoder + 2 * 2 * 7 * 3
    # Per tile and layer: weights 4*4 + 2*2*3 = 28 for 4 tokens, attention 4*16*2.
    tower = 3 * 2 * (2 * 28 * 4 + 4 * 16 * 2)
    assert prefill_flops(shape, [2], 1, tiles=3) == decoder + 2 * 2 * 7 + tower
    assert kv_bytes(shape, [2], 1) == 2 * 1 * 3 * 2 * 3
    assert kv_bytes(shape, [2], 1, bytes_per_value=4) == 2 * 1 * 3 * 4 * 3


@given(st.lists(st.integers(0, 5000), min_size=28, max_size=28), st.integers(0, 27))
def test_one_more_token_in_one_layer_costs_more(visual: list[int], layer: int) -> None:
    more = [count + (k == layer) for k, count in enumerate(visual)]
    assert prefill_flops(QWEN2_7B, more, TEXT) > prefill_flops(QWEN2_7B, visual, TEXT)
    assert kv_bytes(QWEN2_7B, more, TEXT) - kv_bytes(QWEN2_7B, visual, TEXT) == 2 * 4 * 128 * 2


def test_costs_refuse_what_they_cannot_count() -> None:
    with pytest.raises(BudgetError, match=r"27 token counts are given but .* 28 decoder layers;"):
        prefill_flops(QWEN2_7B, [1] * 27, TEXT)
    with pytest.raises(BudgetError, match=r"29 token counts are given but .* 28 decoder layers;"):
        kv_bytes(QWEN2_7B, [1] * 29, TEXT)
    with pytest.raises(BudgetError, match=r"5 tiles are to be counted but .* no vision encoder;"):
        prefill_flops(QWEN2_7B, [1] * 28, TEXT, tiles=5)
