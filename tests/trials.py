"""Models and trials for the tests of search spaces: no Optuna, no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from hypothesis import strategies as st

from vflowopt_search.parameters import Scalar
from vflowopt_search.resources import search_spaces_folder
from vflowopt_search.search_space import ModelFacts
from vflowopt_search.strategy import ModelIdentity, PixelScale

PIXELS = PixelScale(mean=(0.5,), std=(0.5,))


def facts(decoder_layers: int = 28, vision_layers: int = 26, **known: Any) -> ModelFacts:
    identity = ModelIdentity(
        model_type="toy",
        decoder_layers=decoder_layers,
        vision_layers=vision_layers,
        hidden_size=64,
    )
    available = tuple(range(vision_layers))
    return ModelFacts(
        **{"identity": identity, "pixels": PIXELS}
        | known
        | {"vision_layers_available": known.get("vision_layers_available", available)}
    )


class Told:
    """A trial that answers with the values that it was told, and notes what it was asked."""

    def __init__(self, values: dict[str, Scalar]) -> None:
        self.values = values
        self.asked: list[str] = []

    def _answer(self, name: str) -> Any:
        self.asked.append(name)
        return self.values[name]

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        value = float(self._answer(name))
        assert low <= value <= high
        return value

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        value = int(self._answer(name))
        assert low <= value <= high
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        value = self._answer(name)
        assert value in choices
        return value


class Drawn(Told):
    """A trial whose values hypothesis chooses, over the whole of each range and at its ends."""

    def __init__(self, data: st.DataObject) -> None:
        super().__init__({})
        self.data = data

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self.values[name] = self.data.draw(st.floats(low, high), label=name)
        return super().suggest_float(name, low, high)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        self.values[name] = self.data.draw(st.integers(low, high), label=name)
        return super().suggest_int(name, low, high)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.values[name] = self.data.draw(st.sampled_from(list(choices)), label=name)
        return super().suggest_categorical(name, choices)


def written(space: str) -> Any:
    """The plain content of a shipped space."""
    return yaml.safe_load((search_spaces_folder() / f"{space}.yaml").read_text())
