"""What strategies do to one sample, drawn one below the other."""

from __future__ import annotations

import numpy as np

from tests import tiny
from tests.small_set import small_set
from vflowopt_search import baseline_strategies, build_objective, draw_sample, draw_strategies
from vflowopt_search.report.overlay import PANEL_SIDE


def test_each_strategy_has_a_row_of_its_own() -> None:
    model, processor = tiny.tiny_model("llava_onevision"), tiny.tiny_processor("llava_onevision")
    objective = build_objective(model, processor, small_set(3))
    plain = baseline_strategies(objective.facts, 0.3)
    chosen = {name: plain[name] for name in ("uniform", "random")}
    alone = [draw_strategies(objective, {name: chosen[name]}, 1) for name in chosen]
    both = draw_strategies(objective, chosen, 1)
    # the image and what is alive; no maps
    assert 2 * PANEL_SIDE < both.width < 3 * PANEL_SIDE
    assert both.height == sum(one.height for one in alone)
    rows = np.vstack([np.asarray(one) for one in alone])
    np.testing.assert_array_equal(np.asarray(both), rows)
    assert not np.array_equal(np.asarray(alone[0]), np.asarray(alone[1]))
    # one view rather than all of them, under a title
    assert alone[0].height < draw_sample(objective, plain["uniform"], 1).height
