"""One value of a search space: fixed, a range, or a choice; and how it is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self, TypeGuard

from pydantic import AfterValidator, model_validator

from vflowopt_search.documents import Value
from vflowopt_search.errors import SearchSpaceError, VFlowOptError

Scalar = bool | int | float | str
"""What a fixed value or a choice can be."""

Assignment = dict[str, Scalar]
"""Parameter name to value: what a trial was given, or a starting point to enqueue."""


class Suggests(Protocol):
    """What a search space asks for values: an Optuna trial, or anything with its `suggest_*`."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number within [low, high]."""

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """A whole number within [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""


class SpacePart(Value):
    """Anything in a search-space file; a wrong value is a SearchSpaceError."""

    refusal: ClassVar[type[VFlowOptError]] = SearchSpaceError


class Parameter(SpacePart):
    """`3`, or `{low: 0, high: 1}` with `step` or `log`, or `{choices: [a, b]}`."""

    fixed: Scalar | None = None
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False
    choices: tuple[Scalar, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, written: Any) -> Any:
        if isinstance(written, (bool, int, float, str)):
            return {"fixed": written}
        if not isinstance(written, (dict, Parameter)):
            raise ValueError(
                f"{written!r} must be a fixed value, {{low, high}} or {{choices}}; correct it"
            )
        if isinstance(written, dict) and isinstance(written.get("choices"), list):
            return {**written, "choices": tuple(written["choices"])}
        return written

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        is_range = self.low is not None and self.high is not None
        if [self.fixed is not None, is_range, self.choices is not None].count(True) != 1:
            raise ValueError(
                "must be either a fixed value, or a range with low and high, or choices; "
                "write one of them"
            )
        if not is_range and (self.low, self.high, self.step, self.log) != (None, None, None, False):
            raise ValueError("low, high, step and log belong to a range only; remove them")
        if self.choices is not None and not _distinct(self.choices):
            raise ValueError(
                f"choices are {list(self.choices)} but must be two or more different values; "
                f"correct them or write one fixed value"
            )
        if is_range:
            self._check_range(*self.bounds)
        return self

    def _check_range(self, low: float, high: float) -> None:
        if low >= high:
            raise ValueError(f"low is {low} but must be below high, {high}; exchange them")
        if self.log and (low <= 0 or self.step is not None):
            raise ValueError(
                f"log needs low above 0 (it is {low}) and no step; correct low or remove log"
            )
        if self.step is not None and (self.step <= 0 or not _on_grid(high - low, self.step)):
            raise ValueError(
                f"step is {self.step} but must be above 0 and divide the range {low} to {high}; "
                f"correct it"
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """Low and high of a range."""
        assert self.low is not None and self.high is not None  # by _one_form
        return self.low, self.high

    @property
    def possible(self) -> tuple[Scalar, ...]:
        """The fixed value, the choices, or both ends of the range."""
        if self.fixed is not None:
            return (self.fixed,)
        return self.choices or self.bounds

    def holds(self, value: Scalar) -> bool:
        """Whether `value` is one that this parameter can take."""
        if self.fixed is not None or self.choices is not None:
            return any(_same(value, option) for option in self.possible)
        if not _is_number(value) or not self.bounds[0] <= value <= self.bounds[1]:
            return False
        return self.step is None or _on_grid(value - self.bounds[0], self.step)

    def __str__(self) -> str:
        if self.fixed is not None:
            return repr(self.fixed)
        if self.choices is not None:
            return f"one of {list(self.choices)}"
        steps = f" in steps of {self.step}" if self.step else ""
        return f"from {self.low} to {self.high}{steps}"

    def suggest(self, trial: Suggests, name: str) -> Scalar:
        """A value for this trial; a fixed value is not suggested."""
        if self.fixed is not None:
            return self.fixed
        if self.choices is not None:
            return _plain(trial.suggest_categorical(name, self.choices))
        return trial.suggest_float(name, *self.bounds, step=self.step, log=self.log)

    def suggest_whole(self, trial: Suggests, name: str) -> int:
        """The same, of a parameter whose values are whole numbers."""
        if self.low is None:
            return int(self.suggest(trial, name))
        low, high = self.bounds
        return trial.suggest_int(name, int(low), int(high), step=int(self.step or 1), log=self.log)

    def suggest_number(self, trial: Suggests, name: str) -> float:
        """The same, of a parameter whose values are numbers."""
        return float(self.suggest(trial, name))


def _is_number(value: Scalar) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: Any) -> Scalar:
    assert isinstance(value, (bool, int, float, str))  # a sampler gives back one of our choices
    return value


def _same(value: Scalar, option: Scalar) -> bool:
    return value == option and isinstance(value, bool) == isinstance(option, bool)


def _distinct(values: Sequence[Scalar]) -> bool:
    return len(values) > 1 and len({(isinstance(v, bool), v) for v in values}) == len(values)


def _on_grid(offset: float, step: float) -> bool:
    steps = offset / step
    return math.isclose(steps, round(steps), rel_tol=0, abs_tol=1e-9)


def numbers(low: float, high: float, *, low_allowed: bool = True) -> AfterValidator:
    """A rule for a `Parameter`: all its values are numbers within [low, high]."""

    def check(parameter: Parameter) -> Parameter:
        for value in parameter.possible:
            inside = _is_number(value) and low <= value <= high and (low_allowed or value != low)
            if not inside:
                start = "from" if low_allowed else "above"
                raise ValueError(f"{value!r} is not a number {start} {low} to {high}; correct it")
        return parameter

    return AfterValidator(check)


def whole_numbers(low: int) -> AfterValidator:
    """A rule for a `Parameter`: all its values are whole numbers from `low` up."""

    def check(parameter: Parameter) -> Parameter:
        for value in (*parameter.possible, parameter.step or 1):
            if not _is_number(value) or value != int(value) or value < low:
                raise ValueError(f"{value!r} is not a whole number from {low} up; correct it")
        return parameter

    return AfterValidator(check)


def one_of(*allowed: Scalar) -> AfterValidator:
    """A rule for a `Parameter`: it is a fixed value or choices among `allowed`."""

    def check(parameter: Parameter) -> Parameter:
        for value in parameter.possible:
            if not any(_same(value, option) for option in allowed):
                raise ValueError(f"{value!r} is not one of {list(allowed)}; correct it")
        return parameter

    return AfterValidator(check)


def words() -> AfterValidator:
    """A rule for a `Parameter`: all its values are words."""

    def check(parameter: Parameter) -> Parameter:
        for value in parameter.possible:
            if not isinstance(value, str) or not value:
                raise ValueError(f"{value!r} is not a word; correct it")
        return parameter

    return AfterValidator(check)
