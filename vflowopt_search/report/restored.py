"""A study from the table of its trials, where the study itself was not kept.

The table says what each trial was given, how it ended and its mean divergence. What it does not
say stays unknown: the divergence of each sample, and trials that had not ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from vflowopt_search import trials
from vflowopt_search.errors import SearchSpaceError, StudyError
from vflowopt_search.outcome import CONTEXT, VERSIONS
from vflowopt_search.parameters import Parameter
from vflowopt_search.search_space import SearchSpace
from vflowopt_search.storage import quiet_optuna
from vflowopt_search.strategy import Strategy

_NEEDED = {"number", "outcome", "value", "samples_seen", "strategy"}
_PARAMETER = "param_"
_STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.COMPLETE}
_TOLD = ("model", "calibration", "retain", "samples", "seed", "metric")
"""What `summary.json` says of the context of a study."""


def study_from_table(table: Path, summary: Mapping[str, Any], strategy: Strategy | None) -> Study:
    """A study in memory, with the trials of a `trials.parquet`.

    Args:
        table: the file.
        summary: what the `summary.json` beside it says; it may be empty.
        strategy: the one found, where its file is there.

    Raises:
        StudyError: the file is no table of trials.
    """
    frame = _read(table)
    storage, name = InMemoryStorage(), summary.get("study") or table.resolve().parent.name
    with quiet_optuna():
        study = optuna.create_study(storage=storage, study_name=name)
    study.set_user_attr(CONTEXT, _context(summary, strategy))
    study.set_user_attr(VERSIONS, summary.get("environment", {}).get("versions", {}))
    columns = [name for name in frame.columns if name.startswith(_PARAMETER)]
    kinds = _distributions({name: frame[name] for name in columns}, summary)
    for row in frame.sort_values("number").to_dict("records"):
        while len(study.get_trials(deepcopy=False)) < row["number"]:
            study.add_trial(create_trial(state=TrialState.FAIL))  # had not ended
        study.add_trial(_trial(row, kinds))
    return study


def _read(table: Path) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(table)
    except (OSError, ValueError) as error:  # pyarrow's are ValueErrors
        raise StudyError(
            f"{table} is no Parquet file ({error}); restore it, or search again"
        ) from error
    if missing := sorted(_NEEDED - set(frame.columns)):
        raise StudyError(
            f"{table} has no column {', '.join(missing)}; give the output folder of a search"
        )
    return frame


def _trial(row: Mapping[Any, Any], kinds: Mapping[str, BaseDistribution]) -> FrozenTrial:
    given = {name: kind for name, kind in kinds.items() if _known(row[_PARAMETER + name])}
    attributes = {
        trials.STRATEGY: row["strategy"],
        trials.SAMPLES_SEEN: int(row["samples_seen"]),
        trials.TEXTBOOK: row.get("textbook"),
        trials.FAILURE: row.get("failure"),
        trials.SECONDS: row.get("seconds"),
        trials.SLOT: row.get("slot"),
    }
    state = _STATES.get(row["outcome"], TrialState.FAIL)
    done = state is TrialState.COMPLETE and _known(row["value"])
    return create_trial(
        state=state if done else TrialState.FAIL,
        value=float(row["value"]) if done else None,
        params={name: _value(row[_PARAMETER + name], kind) for name, kind in given.items()},
        distributions=given,
        user_attrs={name: value for name, value in attributes.items() if _known(value)}
        | {trials.WHOLE: row["outcome"] == "complete"},
    )


def _known(value: Any) -> bool:
    return value is not None and not bool(pd.isna(value))


def _value(value: Any, kind: BaseDistribution) -> Any:
    """A cell as Optuna has it: a column with gaps holds whole numbers as floats."""
    if isinstance(kind, CategoricalDistribution):
        return next(choice for choice in kind.choices if choice == value)
    return int(value) if isinstance(kind, IntDistribution) else float(value)


def _distributions(
    columns: Mapping[str, pd.Series[Any]], summary: Mapping[str, Any]
) -> dict[str, BaseDistribution]:
    """The searched ranges where the space is one of ours, else those of the values."""
    space, found = _space(summary), {}
    for column, cells in columns.items():
        name, values = column.removeprefix(_PARAMETER), cells.dropna().tolist()
        parameter = space.get(name)
        if values and parameter is not None and all(map(parameter.holds, values)):
            found[name] = _searched(parameter, values)
        elif values:
            found[name] = _seen(values)
    return found


def _space(summary: Mapping[str, Any]) -> dict[str, Parameter]:
    """The parameters of the space that was searched; none where it is not at hand."""
    name = summary.get("recipe", {}).get("space")
    try:
        space = None if name is None else SearchSpace.load(name)
    except SearchSpaceError:
        return {}
    return {} if space is None else space.searched()


def _searched(parameter: Parameter, values: list[Any]) -> BaseDistribution:
    if parameter.choices is not None or parameter.fixed is not None:
        return CategoricalDistribution(parameter.possible)
    low, high = parameter.bounds
    if all(isinstance(value, int) for value in values):
        return IntDistribution(int(low), int(high), log=parameter.log)
    return FloatDistribution(low, high, log=parameter.log)


def _seen(values: list[Any]) -> BaseDistribution:
    if any(isinstance(value, bool | str) for value in values):
        return CategoricalDistribution(sorted(set(values), reverse=isinstance(values[0], bool)))
    if all(float(value).is_integer() for value in values):
        return IntDistribution(int(min(values)), int(max(values)))
    return FloatDistribution(float(min(values)), float(max(values)))


def _context(summary: Mapping[str, Any], strategy: Strategy | None) -> dict[str, str]:
    """What the study's results depend on, as far as the files tell."""
    recipe = summary.get("recipe", {})
    context = {name: str(recipe[name]) for name in _TOLD if name in recipe}
    if "sha256" in summary.get("calibration", {}):
        context["calibration_sha256"] = summary["calibration"]["sha256"]
    identity = None if strategy is None else strategy.model
    if identity is not None:
        context |= {"model_type": identity.model_type, "config_sha256": str(identity.config_sha256)}
    return context
