"""What a row says of answers that stood side by side, without a clock."""

from __future__ import annotations

from typing import Any

import pytest

from vflowopt_search.benchmark.records import Side, Spread
from vflowopt_search.benchmark.rows import _ratios, _removed
from vflowopt_search.benchmark.timing import Answer
from vflowopt_search.pruning.record import LastPrefill

ONCE = Spread.of([1.0])
TIMES = ("first_token_s", "encoding_s", "decoder_s", "decode_tokens_per_s", "end_to_end_s")
WHOLE = [Answer(1.0, decoder, (0.5, 0.5), 2.0, 100) for decoder in (4.0, 6.0, 8.0)]
SHORT = [Answer(1.0, 2.0, (0.1, 0.4), 0.5, 50)] * 3


def side(flops: float | None) -> Side:
    rest: dict[str, Any] = dict.fromkeys(TIMES, ONCE)
    return Side(visual_per_layer=(4,), kv_bytes=1, peak_bytes=None, prefill_flops=flops, **rest)


def test_a_speed_up_is_how_many_times_faster_the_pruned_side_is() -> None:
    ratios = _ratios(WHOLE, SHORT, side(60.0), side(15.0))
    assert ratios["decoder_speed_up"] == Spread(low=2.5, median=3.0, high=3.5)
    assert ratios["first_token_speed_up"].median == 7 / 3
    assert ratios["decode_speed_up"].median == 2.0
    assert ratios["end_to_end_speed_up"].median == 4.0
    assert ratios["possible_speed_up"] == 4.0
    assert ratios["share_reached"] == 3.0 / 4.0


def test_what_scores_add_to_the_vision_encoder_is_counted_to_the_pruned_decoder() -> None:
    short = [Answer(encoding, 2.0, (0.1,), 0.5, 50) for encoding in (1.5, 1.2, 3.0)]
    ratios = _ratios(WHOLE, short, side(60.0), side(15.0))
    assert ratios["scoring_s"] == 0.5  # the median of 0.5, 0.2 and 2
    assert ratios["decoder_speed_up"].median == 6.0 / 2.5
    assert ratios["share_reached"] == 6.0 / 2.5 / 4.0
    faster = [Answer(0.5, 2.0, (0.1,), 0.5, 50)] * 3  # chance, for nothing is left out there
    assert _ratios(WHOLE, faster, side(None), side(None))["scoring_s"] == 0.0
    assert _ratios(WHOLE, faster, side(None), side(None))["decoder_speed_up"].median == 3.0


def test_what_was_not_counted_or_measured_is_not_said() -> None:
    uncounted = _ratios(WHOLE, SHORT, side(60.0), side(None))
    assert uncounted["possible_speed_up"] is None and uncounted["share_reached"] is None
    assert _ratios(WHOLE, [], side(60.0), None) == {}


@pytest.mark.parametrize(
    ("alive", "said"), [([[3, 3], [4, 2]], True), ([[3, 3], [4, 4]], False), ([[4, 4]] * 2, False)]
)
def test_a_batch_has_lost_tokens_where_each_of_its_prompts_has(
    alive: list[list[int]], said: bool
) -> None:
    last = LastPrefill([4, 4], [9, 9], alive, kept={}, recycled=[{}, {}], importance=[])
    assert _removed(last) == said
    assert not _removed(None)
