"""Which strategies a validation looks at."""

from __future__ import annotations

import pytest

from tests.fake_study import FACTS, SPACE, fake_run, fake_space
from vflowopt_search.budget import mean_retained
from vflowopt_search.errors import EvaluationError
from vflowopt_search.evaluate.queue import content_of
from vflowopt_search.evaluate.spread import Tried, _evenly_spaced, spread
from vflowopt_search.outcome import strategy_of
from vflowopt_search.search_space import SearchSpace


def tried(total: int = 30) -> list[Tried]:
    study = fake_run(total=total).study
    return [Tried(t.number, strategy_of(t), t.value or 0.0) for t in study.trials]


def test_a_third_of_each_and_no_two_alike() -> None:
    everything = tried()
    chosen = spread(everything, fake_space(), 0.25, 15, seed=0)
    assert [one.origin for one in chosen] == ["along"] * 5 + ["random"] * 5 + ["fresh"] * 5
    assert len({one.name for one in chosen}) == 15
    contents = [content_of(one.strategy) for one in chosen]
    assert all(one not in contents[:n] for n, one in enumerate(contents))
    for one in chosen:
        assert mean_retained(one.strategy.stages, 8) == pytest.approx(0.25)
    values = {f"trial {one.number}": one.value for one in everything}
    along = [values[one.name] for one in chosen[:5]]
    assert along == sorted(along)
    assert (along[0], along[-1]) == (min(values.values()), max(values.values()))


def test_steps_along_the_divergences_are_even_on_a_logarithmic_scale() -> None:
    some = [one.strategy for one in tried(30)]
    values = [10.0**-power for power in range(7)] + [0.5 + n / 100 for n in range(23)]
    everything = [
        Tried(n, one, value) for n, (one, value) in enumerate(zip(some, values, strict=True))
    ]
    chosen = [one.value for one in _evenly_spaced(everything, 4)]
    assert chosen == [1e-6, 1e-4, 1e-2, 1.0]


def test_the_seed_decides_and_another_one_differs() -> None:
    everything = tried()
    one = spread(everything, fake_space(), 0.25, 15, seed=0)
    assert one == spread(everything, fake_space(), 0.25, 15, seed=0)
    assert one != spread(everything, fake_space(), 0.25, 15, seed=1)


def test_a_small_study_is_filled_up_with_fresh_ones() -> None:
    everything = tried()[:3]
    chosen = spread([*everything, *everything], fake_space(), 0.25, 12, seed=0)
    origins = [one.origin for one in chosen]
    assert (origins.count("along"), origins.count("fresh")) == (3, 9)


def test_too_few_strategies_are_refused() -> None:
    fixed = SPACE.model_dump(mode="json", exclude={"textbook"}) | {
        "stages": {"count": 1, "depths": [0], "keep": 0.5},
        "importance": {
            "score": "uniform",
            "vision_depth": 1.0,
            "context_threshold": 0.0,
            "entropy_weight": 0.0,
        },
        "recycling": {"enabled": False, "cell": 3.0},
        "positions": "original",
        "separators": "drop",
    }
    space = SearchSpace.model_validate(fixed).bind(FACTS)
    with pytest.raises(EvaluationError, match=r"1 strategies are too few .* ask for 8 or more"):
        spread([], space, 0.25, 12, seed=0)
