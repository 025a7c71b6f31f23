"""Refuses to go on with a study that was made otherwise, before its model costs any time."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from optuna import Study
from optuna.storages import BaseStorage

from vflowopt_search.calibration.refusals import MOST_UNUSABLE
from vflowopt_search.outcome import CONTEXT, check_context
from vflowopt_search.settings import StudySettings
from vflowopt_search.storage import stored_study

if TYPE_CHECKING:
    from vflowopt_search.calibration.samples import CalibrationSet


def refuse_another(
    storage: str | Path | BaseStorage,
    settings: StudySettings,
    known: Mapping[str, str],
    samples: CalibrationSet | None = None,
) -> None:
    """Compare a stored study with what is known of its context without the model.

    `claim_context` compares the rest, once the model has been asked.

    Args:
        storage: where the study may be; nothing is made there.
        settings: how it is to be searched.
        known: other parts of its context.
        samples: those chosen for it, of which the model's processor may refuse some.

    Raises:
        StudyError: the study was made in another context, or cannot be opened.
    """
    study = stored_study(storage, settings.name)
    if study is not None:
        about = {} if samples is None else _of_samples(study, samples)
        check_context(study, {**settings.context(), **known, **about})


def _of_samples(study: Study, chosen: CalibrationSet) -> dict[str, str]:
    """What is sure of the samples: a study of fewer may be of these, less what was refused."""
    measured = int(study.user_attrs.get(CONTEXT, {}).get("samples", 0))
    if measured == len(chosen):
        return {"calibration": chosen.name, "calibration_sha256": chosen.sha256}
    least = ceil((1 - MOST_UNUSABLE) * len(chosen))
    if least <= measured < len(chosen):
        return {"calibration": chosen.name}
    return {"calibration": chosen.name, "samples": str(len(chosen))}
