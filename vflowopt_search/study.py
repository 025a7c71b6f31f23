"""The search: an Optuna study over pruning strategies that resumes, races and exports its best."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna import Study
from optuna.storages import BaseStorage, InMemoryStorage

from vflowopt_search.interrupt import interruptible
from vflowopt_search.outcome import (
    StudyOutcome,
    claim_context,
    outcome_of_study,
)
from vflowopt_search.race import DrawsStrategies, MeasuresStrategies, Race, stopping_rule
from vflowopt_search.recovery import Recovering, recover
from vflowopt_search.rescoring import rescore_once
from vflowopt_search.result import SearchResult
from vflowopt_search.resuming import refuse_another
from vflowopt_search.rounds import OnTrial, Rounds
from vflowopt_search.sampling import SamplerName, SlotSampler
from vflowopt_search.search_space import SearchSpace
from vflowopt_search.settings import StudySettings
from vflowopt_search.signs import SignsOfLife
from vflowopt_search.storage import open_storage, quiet_optuna
from vflowopt_search.strategy import ModelIdentity
from vflowopt_search.textbook import unbeaten
from vflowopt_search.whole_tokens import overshoot

if TYPE_CHECKING:
    from vflowopt_search.calibration.samples import CalibrationSet

_log = logging.getLogger(__name__)


def run_study(
    objective: MeasuresStrategies,
    space: DrawsStrategies,
    settings: StudySettings,
    *,
    storage: str | Path | BaseStorage,
    context: Mapping[str, str] | None = None,
    on_trial: OnTrial | None = None,
) -> StudyOutcome:
    """Run a study to its asked number of trials, from wherever an earlier run left it.

    A trial whose divergence is not finite, or that does not fit in memory, fails and the study
    goes on; Ctrl-C ends the run and keeps what was found; any other error marks its trial as
    failed and is raised.

    Args:
        objective: measures strategies.
        space: draws strategies; its textbook is measured first.
        settings: how to search.
        storage: path of a journal file, an Optuna database URL, or an open storage.
        context: what the results depend on besides the settings (see `study_context`).
        on_trial: called after each trial that counts.

    Raises:
        StudyError: the storage cannot be opened, its study was made in another context, or trial
            after trial does not fit in memory.
    """
    sampler = SlotSampler(settings.sampler, settings.seed, list(space.textbook().values()))
    with quiet_optuna():
        opened = open_storage(storage)
        study = _open_study(opened, settings, sampler)
        claim_context(study, {**(context or {}), **_own_context(objective, settings)})
        recover(study, opened)
        interrupted = False
        try:
            with (
                interruptible(objective) as stoppable,
                SignsOfLife(opened),
                Recovering(study, opened),
            ):
                race = Race(
                    stoppable,
                    space,
                    sampler,
                    settings.name,
                    settings.retain,
                    settings.seed,
                    settings.trials_per_batch,
                )
                Rounds(study, opened, race, settings.trials, on_trial).run()
        except KeyboardInterrupt:
            interrupted = True
    return outcome_of_study(study, settings.trials, interrupted=interrupted or stoppable.pressed)


def study_context(
    identity: ModelIdentity, calibration: CalibrationSet, space: SearchSpace
) -> dict[str, str]:
    """What a study's results depend on besides its settings: model, calibration set and space."""
    return {
        "model_type": identity.model_type,
        "model": str(identity.name),
        "revision": str(identity.revision),
        "config_sha256": str(identity.config_sha256),
        "calibration": calibration.name,
        "calibration_sha256": calibration.sha256,
        "space_sha256": space.sha256(),
    }


def search(
    model: Any,
    processor: Any,
    calibration: CalibrationSet,
    *,
    space: str | Path = "vflowopt",
    retain: float = 0.10,
    trials: int = 100,
    seed: int = 0,
    storage: str | Path | BaseStorage | None = None,
    metric: str = "last_token_cosine",
    batch_size: int | None = None,
    trials_per_batch: int = 1,
    cache: Path | None = None,
    cache_gb: float | None = None,
    held_out: CalibrationSet | None = None,
    sampler: SamplerName = "tpe",
    racing: bool = True,
    strict: bool = False,
    name: str = "search",
    on_trial: OnTrial | None = None,
) -> SearchResult:
    """Find which visual tokens a model can drop, where and how many, at an exact budget.

    What the command line notes (samples left out, parameters fixed, no trial better than the
    textbook, a budget below one token) is logged as warnings.

    A search may fit its samples; others tell how much, and those of `calibration` are at hand:
    `seen = load_calibration(data, halve=True)`, then
    `others = without_images_of(load_calibration(data, num_samples=512), seen)`.

    Args:
        model: any supported stock transformers model; borrowed, and unchanged afterwards.
        processor: the model's processor.
        calibration: unlabelled samples (see `vflowopt_search.calibration`).
        space: name of a shipped search space, or path of a YAML file.
        retain: share of visual tokens alive, averaged over decoder layers, in (0, 1).
        trials: how many trials the study has in the end, over all calls on one storage.
        seed: of everything random.
        storage: path of a journal file or a database URL to resume from; None keeps no file.
        metric: name of the divergence.
        batch_size: samples measured together, of each strategy; None chooses.
        trials_per_batch: strategies measured together; more fill a GPU with a small model.
        cache: folder for what does not depend on the trial; None keeps it in memory.
        cache_gb: bound on that (see `build_objective`).
        held_out: other samples, as those above, on which the best strategy is measured at the end;
            its file then states both divergences, and without them that of the search alone.
        sampler: `tpe`, `gp`, `tpe-multivariate` or `random` (see `StudySettings`).
        racing: stop hopeless trials early.
        strict: stop at a sample that the processor does not take, instead of leaving it out.
        name: of the study and of the strategy.
        on_trial: called after each trial.

    Raises:
        VFlowOptError: the model, the samples, the space or the storage cannot be used.
    """
    from vflowopt_search.calibration.samples import require_set
    from vflowopt_search.objective import build_objective  # torch: only a search needs it

    require_set(calibration, "calibration")
    if held_out is not None:
        require_set(held_out, "held_out")
    chosen = SearchSpace.load(space)
    settings = StudySettings(name, retain, trials, seed, racing, sampler, trials_per_batch)
    if storage is not None:
        known = {"metric": metric, "space_sha256": chosen.sha256()}
        refuse_another(storage, settings, known, calibration)
    build = partial(
        build_objective,
        model,
        processor,
        metric=metric,
        batch_size=batch_size,
        cache=cache,
        cache_gb=cache_gb,
        strict=strict,
    )
    objective = build(calibration)
    bound = chosen.bind(objective.facts)
    _note(*bound.notes, objective.calibration.note)
    outcome = run_study(
        objective,
        bound,
        settings,
        storage=InMemoryStorage() if storage is None else storage,
        context={
            **study_context(objective.facts.identity, objective.calibration, chosen),
            **objective.fingerprint,
        },
        on_trial=on_trial,
    )
    if held_out is not None and outcome.finished:

        def build_others() -> tuple[MeasuresStrategies, str]:
            others = build(held_out)
            _note(others.calibration.held_out_note)
            return others, others.calibration.sha256

        if rescore_once(outcome.study, held_out.sha256, build_others):
            outcome = outcome_of_study(outcome.study, trials, interrupted=False)
    whole = overshoot(retain, outcome.best, objective.visual_tokens)
    _note(unbeaten(outcome.textbook), whole)
    return SearchResult(outcome, storage)


def _note(*remarks: str) -> None:
    """Log what the command line would note."""
    for remark in filter(None, remarks):
        _log.warning(remark)


def _open_study(storage: BaseStorage, settings: StudySettings, sampler: SlotSampler) -> Study:
    return optuna.create_study(
        storage=storage,
        study_name=settings.name,
        direction="minimize",
        sampler=sampler,
        pruner=stopping_rule(racing=settings.racing),
        load_if_exists=True,
    )


def _own_context(objective: MeasuresStrategies, settings: StudySettings) -> dict[str, str]:
    measured = {"samples": str(objective.num_samples), "metric": objective.metric}
    return {**measured, **settings.context()}
