"""What `evaluate` is asked to compare: strategy files, run folders, and baselines."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vflowopt_search import run_folder
from vflowopt_search.strategy import Strategy
from vflowopt_search.strategy_hub import find_strategy

if TYPE_CHECKING:
    from vflowopt_search.calibration.samples import Sample
    from vflowopt_search.calibration.seen_images import SeenImages
    from vflowopt_search.search_space import ModelFacts

PREFIX = "baseline:"
MOST_DRAWS = 100
_DRAWS = re.compile(r"random:(\d+)-(\d+)", re.ASCII)


@dataclass(frozen=True)
class Candidates:
    """The strategies that were named, before the model is loaded.

    Args:
        files: name to strategy, in the order in which they were named.
        baselines: names of baselines.
        run: the first run folder among what was named.
        seen: by name, the images that a strategy was searched on, where they are known.
    """

    files: dict[str, Strategy]
    baselines: tuple[str, ...]
    run: Path | None
    seen: dict[str, SeenImages] = field(default_factory=dict)

    @property
    def model_name(self) -> str | None:
        """The model that the first file names."""
        named = [s.model.name for s in self.files.values() if s.model and s.model.name]
        return named[0] if named else None

    def searched_on(self, samples: Sequence[Sample]) -> dict[str, int]:
        """By name, how many of the samples show images that a strategy was searched on."""
        if not self.seen:
            return {}
        from vflowopt_search.calibration.seen_images import fingerprints

        names, shown = self._names(), [fingerprints(sample) for sample in samples]
        return {names[name]: seen.count(shown) for name, seen in self.seen.items()}

    def _names(self) -> dict[str, str]:
        """What each file is called beside the baselines, which keep their names."""
        names: dict[str, str] = {}
        for name in self.files:
            names[name] = _free(name, {*self.baselines, *names.values()})
        return names

    def budget(self, retain: float | None, depth: int) -> float:
        """The budget of the baselines: as typed, else that of the first file.

        Raises:
            typer.BadParameter: neither is there.
        """
        from vflowopt_search.budget import mean_retained

        self.require_budget(retain)
        if retain is not None:
            return retain
        return mean_retained(next(iter(self.files.values())).stages, depth)

    def require_budget(self, retain: float | None) -> None:
        """Refuse baselines without a budget, which needs no model.

        Raises:
            typer.BadParameter: none was typed, and there is no file that has one.
        """
        if retain is None and not self.files:
            raise typer.BadParameter(
                "baselines alone have no budget; say which share of the visual tokens to "
                "keep, as --retain 0.10",
                param_hint="--retain",
            )

    def strategies(
        self, facts: ModelFacts, retain: float | None
    ) -> tuple[dict[str, Strategy], dict[str, str]]:
        """All strategies by name, the baselines at the budget of the others.

        Returns:
            The strategies, and by name why a baseline is left out: it does not exist at this
            budget or on this model.

        Raises:
            StrategyError: a strategy is for another model, or nothing is left to compare.
        """
        from vflowopt_search.baselines import baseline
        from vflowopt_search.errors import StrategyError

        for strategy in self.files.values():
            strategy.check_fits(facts.identity)
        if not self.baselines:
            return dict(self.files), {}
        budget = self.budget(retain, facts.identity.decoder_layers)
        plain: dict[str, Strategy] = {}
        left_out: dict[str, str] = {}
        for name in self.baselines:
            try:
                plain[name] = baseline(name, facts, budget)
            except StrategyError as error:
                left_out[name] = str(error)
        if not self.files and not plain:
            raise StrategyError("; ".join(left_out.values()))
        names = self._names()
        return {names[name]: strategy for name, strategy in self.files.items()} | plain, left_out


def read_candidates(named: Sequence[str]) -> Candidates:
    """Read what was named.

    Raises:
        StrategyError: a file is missing or wrong, or there is no such baseline.
    """
    files: dict[str, Strategy] = {}
    baselines: list[str] = []
    seen: dict[str, SeenImages] = {}
    run: Path | None = None
    for one in named:
        if one.startswith(PREFIX):
            baselines += _known_baselines(one.removeprefix(PREFIX))
            continue
        path = Path(one)
        strategy = find_strategy(path)
        files[name := _free(strategy.name, files)] = strategy
        if (images := seen_by(strategy, path)) is not None:
            seen[name] = images
        run = run or run_of(path)
    return Candidates(files, tuple(dict.fromkeys(baselines)), run, seen)


def seen_by(strategy: Strategy, path: Path) -> SeenImages | None:
    """The images that the search saw, as a list beside its strategy tells, if it is of this one.

    Args:
        strategy: what it found.
        path: the strategy's file, or its folder.

    Raises:
        CalibrationError: the list cannot be read.
    """
    file = (path if path.is_dir() else path.parent) / run_folder.SEEN_IMAGES
    calibration = strategy.provenance.calibration if strategy.provenance else None
    if calibration is None or not file.is_file():
        return None
    from vflowopt_search.calibration.seen_images import SeenImages

    seen = SeenImages.load(file)
    return seen if seen.calibration_sha256 == calibration.sha256 else None


def run_of(path: Path) -> Path | None:
    """The run folder that a strategy was named by or lies in, if any."""
    if path.is_dir():
        return path if (path / run_folder.STRATEGY).is_file() else None
    return path.parent if (path.parent / run_folder.JOURNAL).exists() else None


def _known_baselines(name: str) -> list[str]:
    """The baseline of that name, or all draws of `random:1-4`."""
    from vflowopt_search.baselines import NAMES, is_baseline
    from vflowopt_search.errors import StrategyError

    if found := _DRAWS.fullmatch(name):
        first, last = int(found[1]), int(found[2])
        if not 0 <= last - first < MOST_DRAWS:
            raise StrategyError(
                f"{PREFIX}{name} is no range of 1 to {MOST_DRAWS} draws; give the lower seed "
                f"first, as {PREFIX}random:1-4"
            )
        return [f"random:{seed}" for seed in range(first, last + 1)]
    if not is_baseline(name):
        known = ", ".join(f"{PREFIX}{each}" for each in (*NAMES[:2], "random:1-4", *NAMES[2:]))
        raise StrategyError(f"no baseline is called {name!r}; use one of {known}")
    return [name]


def _free(name: str, taken: Container[str]) -> str:
    """The name, numbered when it is taken; `unpruned` is the unpruned model's."""
    number, free = 1, name
    while free in taken or free == "unpruned":
        number += 1
        free = f"{name} ({number})"
    return free
