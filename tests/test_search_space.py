"""A search space: what a file may say, and what every trial of it becomes on every model."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trials import PIXELS, Drawn, Told, facts, written
from vflowopt_search.budget import mean_retained
from vflowopt_search.errors import BudgetError, SearchSpaceError
from vflowopt_search.parameters import Scalar, Suggests
from vflowopt_search.resources import search_spaces_folder
from vflowopt_search.search_space import BoundSpace, ModelFacts, SearchSpace
from vflowopt_search.strategy import Strategy

SHIPPED = ["by-structure", "keep-ratios-only", "vflowopt", "vflowopt-published"]
every_space = pytest.mark.parametrize("space", SHIPPED)


def bound(space: str, model: ModelFacts | None = None) -> BoundSpace:
    return SearchSpace.load(space).bind(model or facts())


def layers(strategy: Strategy) -> list[int]:
    return [stage.layer for stage in strategy.stages]


# --- trials


@every_space
@given(st.data(), st.integers(3, 80), st.integers(1, 40), st.floats(0.001, 1))
def test_every_trial_is_a_strategy_that_fits_and_meets_the_budget(
    space: str, data: st.DataObject, depth: int, vision_layers: int, retain: float
) -> None:
    model = facts(depth, vision_layers)
    strategy = bound(space, model).suggest(Drawn(data), retain)
    strategy.check_fits(model.identity)
    assert strategy.model == model.identity
    assert strategy.budget is not None
    assert strategy.budget.mean_retained == retain
    assert abs(mean_retained(strategy.stages, depth) - retain) <= 1e-9
    assert Strategy.loads(strategy.to_json()) == strategy


@every_space
@given(st.data())
def test_the_same_values_give_the_same_strategy_and_only_searched_names_are_asked(
    space: str, data: st.DataObject
) -> None:
    here = bound(space)
    trial = Drawn(data)
    first = here.suggest(trial, 0.25)
    again = Told(trial.values)
    assert here.suggest(again, 0.25) == first
    assert again.asked == trial.asked
    assert len(set(again.asked)) == len(again.asked)
    assert all(here.searched()[name].holds(value) for name, value in trial.values.items())


def test_names_that_a_full_trial_is_asked_for_in_order() -> None:
    trial = Told(
        {
            "num_stages": 3,
            "stage2_depth": 0.0,
            "stage3_depth": 1.0,
            "stage2_keep": 0.5,
            "stage3_keep": 0.25,
            "vision_depth": 0.5,
            "context_threshold": 12.5,
            "entropy_weight": -0.25,
            "recycling": True,
            "recycling_cell": 6.0,
            "positions": "packed",
            "separators": "keep",
        }
    )
    strategy = bound("vflowopt").suggest(trial, 0.1, name="mine")
    assert trial.asked == list(trial.values)
    assert set(trial.asked) == set(bound("vflowopt").searched())
    assert strategy.name == "mine"
    assert layers(strategy) == [0, 1, 27]
    assert strategy.importance.vision_layer == 13
    assert strategy.importance.context_threshold == 12.5
    assert (strategy.importance.entropy_weight, strategy.importance.pixels) == (-0.25, PIXELS)
    assert strategy.recycling is not None
    assert strategy.recycling.cell == 6.0
    assert (strategy.positions, strategy.separators) == ("packed", "keep")
    ratios = [stage.keep_ratio for stage in strategy.stages]
    assert ratios[1:] == [0.5, 0.25]


def test_what_does_not_exist_is_not_asked_for() -> None:
    values: dict[str, Scalar] = {
        "num_stages": 1,
        "vision_depth": 1.0,
        "context_threshold": 0.0,
        "entropy_weight": 0.0,
        "recycling": False,
        "positions": "original",
        "separators": "drop",
    }
    trial = Told(values)
    strategy = bound("vflowopt").suggest(trial, 0.1)
    assert trial.asked == list(values)
    assert strategy.stages[0].keep_ratio == pytest.approx(0.1)
    assert strategy.recycling is None
    assert strategy.importance.pixels is None


def test_the_smallest_space_asks_for_the_later_keep_ratios_only() -> None:
    assert set(bound("keep-ratios-only").searched()) == {"stage2_keep", "stage3_keep"}


def test_later_stages_may_rank_by_another_score_than_the_first() -> None:
    here = bound("by-structure", facts(scores=("uniform", "random", "text_attention")))
    values = here.textbook()["uniform-then-text"]
    strategy = here.suggest(Told(values), 0.3)
    assert strategy.importance.score == "uniform"
    assert [stage.score for stage in strategy.stages] == [None, "text_attention"]


def test_a_later_score_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(SearchSpaceError, match=r"scores by text_attention, which .* do not offer"):
        bound("by-structure", facts(scores=("uniform", "random")))


@pytest.mark.parametrize(("depth", "expected"), [(28, [0, 9, 18]), (32, [0, 10, 20])])
def test_published_layers(depth: int, expected: list[int]) -> None:
    here = bound("vflowopt-published", facts(depth))
    strategy = here.suggest(Told(here.textbook()["published-0.10"]), 0.1)
    assert layers(strategy) == expected


@pytest.mark.parametrize("retained", ["0.50", "0.25", "0.10"])
def test_the_published_space_contains_the_published_strategies(retained: str) -> None:
    folder = search_spaces_folder().parent / "studies" / "published"
    published = Strategy.load(folder / f"llava-onevision-7b-{retained}.json")
    assert published.budget is not None
    here = bound("vflowopt-published")
    trial = Told(here.textbook()[f"published-{retained}"])
    strategy = here.suggest(trial, published.budget.mean_retained)
    ratios = [stage.keep_ratio for stage in published.stages]
    assert [stage.keep_ratio for stage in strategy.stages] == pytest.approx(ratios, abs=1e-9)
    same = {"importance", "recycling", "positions", "separators"}
    assert strategy.model_dump(include=same) == published.model_dump(include=same)


def test_the_published_ranges() -> None:
    ranges = {
        name: parameter.bounds for name, parameter in bound("vflowopt-published").searched().items()
    }
    assert ranges == {
        "stage2_keep": (0.01, 1.0),
        "stage3_keep": (0.01, 1.0),
        "context_threshold": (0.0, 50.0),
        "entropy_weight": (-1.0, 1.0),
        "recycling_cell": (3.0, 24.0),
    }


# --- textbook


@every_space
@pytest.mark.parametrize("depth", [3, 4, 8, 28, 32, 61])
def test_each_starting_point_is_a_trial_of_its_space(space: str, depth: int) -> None:
    here = bound(space, facts(depth))
    assert here.textbook()
    for values in here.textbook().values():
        trial = Told(values)
        strategy = here.suggest(trial, 0.1)
        assert set(trial.asked) == set(values)
        assert all(here.searched()[name].holds(value) for name, value in values.items())
        strategy.check_fits(here.facts.identity)


@pytest.mark.parametrize("depth", [8, 28, 32, 80])
def test_starting_points_of_the_full_space(depth: int) -> None:
    here = bound("vflowopt", facts(depth))
    book = {name: here.suggest(Told(v), 0.1) for name, v in here.textbook().items()}
    once = book["attention-once"]
    assert layers(once) == [0]
    assert once.importance.vision_layer == 25
    assert (once.importance.context_threshold, once.importance.entropy_weight) == (0, 0)
    assert once.recycling is None
    assert layers(book["published-like"]) == [0, depth // 3, 2 * (depth // 3)]
    assert layers(book["pyramid"]) == [0, depth // 2]


def test_a_starting_point_that_a_range_does_not_reach_is_refused_when_bound() -> None:
    content = written("vflowopt")
    content["stages"]["depths"][1] = {"low": 0.9, "high": 1.0}
    here = SearchSpace.model_validate(content).bind(facts())
    with pytest.raises(SearchSpaceError, match=r"at layer 9 but the range 0\.9 to 1\.0 .* widen"):
        here.textbook()


# --- what a model cannot have


def test_entropy_without_pixels_is_fixed_off_and_said() -> None:
    here = bound("vflowopt", facts(pixels=None))
    assert here.notes == ("entropy_weight is fixed at 0: the model has no pixels to use",)
    assert "entropy_weight" not in here.searched()
    for values in here.textbook().values():
        assert here.suggest(Told(values), 0.1).importance.entropy_weight == 0
    assert bound("keep-ratios-only", facts(pixels=None)).notes == ()


def test_positions_separators_and_layers_that_a_model_lacks_are_fixed_and_said() -> None:
    lacking = facts(packs_positions=False, has_separators=False, vision_layers_available=(5,))
    here = bound("vflowopt", lacking)
    assert here.notes == (
        "positions are fixed at original: the model cannot pack them",
        "separators are fixed at drop: the model has none",
        "vision_depth is fixed: 1 encoder layers can be read",
    )
    values = here.textbook()["published-like"]
    assert not {"positions", "separators", "vision_depth"} & set(values)
    strategy = here.suggest(Told(values), 0.1)
    assert (strategy.positions, strategy.separators) == ("original", "drop")
    assert strategy.importance.vision_layer == 5
    published = bound("vflowopt-published", lacking)
    assert published.notes == here.notes[:1]
    assert (
        published.suggest(Told(published.textbook()["published-0.10"]), 0.1).positions == "original"
    )


def test_a_model_whose_encoder_cannot_be_read_gets_no_vision_layer() -> None:
    here = bound("keep-ratios-only", facts(vision_layers_available=()))
    assert here.suggest(Told(here.textbook()["halving"]), 0.1).importance.vision_layer is None


@given(st.floats(0, 1))
def test_only_layers_that_can_be_read_are_chosen(place: float) -> None:
    here = bound("vflowopt", facts(vision_layers_available=(7, 15, 23, 25)))
    values = here.textbook()["attention-once"] | {"vision_depth": place}
    chosen = here.suggest(Told(values), 0.1).importance.vision_layer
    assert chosen == (7, 15, 23, 25)[min(3, math.floor(4 * place))]


@every_space
def test_a_model_with_too_few_layers_is_refused(space: str) -> None:
    sentence = r"a model of 2 decoder layers has no free layer for stage \d of 3; search fewer"
    with pytest.raises(SearchSpaceError, match=sentence):
        bound(space, facts(2))


def test_a_budget_below_a_late_first_stage_is_refused() -> None:
    content = written("keep-ratios-only")
    content["stages"]["depths"] = ["1/4", "1/3", "2/3"]
    content["textbook"] = {}
    here = SearchSpace.model_validate(content).bind(facts())
    with pytest.raises(BudgetError, match=r"first stage at layer 7 of 28: it must be above 0\.25"):
        here.suggest(Told({"stage2_keep": 0.5, "stage3_keep": 0.5}), 0.2)


# --- Optuna


def test_an_optuna_trial_is_something_that_suggests() -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    here = bound("vflowopt")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for values in here.textbook().values():
        study.enqueue_trial(values)
    strategies = []
    for _ in range(40):
        trial = study.ask()
        suggests: Suggests = trial
        strategies.append(here.suggest(suggests, 0.1))
        study.tell(trial, 0.0)
        distributions = trial.distributions
        assert set(trial.params) <= set(here.searched())
        assert all(here.searched()[name].holds(value) for name, value in trial.params.items())
        assert set(distributions) == set(trial.params)
    told = [here.suggest(Told(values), 0.1) for values in here.textbook().values()]
    assert strategies[: len(told)] == told
    assert {len(strategy.stages) for strategy in strategies} == {1, 2, 3}
