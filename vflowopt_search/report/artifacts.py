"""Pictures of each best strategy so far, kept as Optuna artifacts for its dashboard."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
from optuna import Study
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.storages import BaseStorage

from vflowopt_search import trials
from vflowopt_search.objective import Objective
from vflowopt_search.outcome import TrialReport, strategy_of
from vflowopt_search.report.draw import draw_sample
from vflowopt_search.report.frames import staircase
from vflowopt_search.report.staircase_svg import staircase_svg


class BestPictures:
    """Attaches a staircase and an overlay to the study whenever a trial becomes its best.

    They are attached to the study and not to the trial, which has ended by then and cannot be
    changed; their names say which trial they are of.
    """

    def __init__(self, objective: Objective, storage: BaseStorage, name: str, folder: Path) -> None:
        """See `attach`.

        Args:
            objective: has the model and the samples.
            storage: of the study.
            name: of the study.
            folder: where artifacts go; made when the first one comes.
        """
        self._objective = objective
        self._storage, self._name, self._folder = storage, name, folder

    def __call__(self, report: TrialReport) -> None:
        """Attach the pictures of a trial that has just ended, if it is the best now."""
        if report.outcome != "complete" or report.value != report.best:
            return
        study = optuna.load_study(study_name=self._name, storage=self._storage)
        best = trials.best_full(study.get_trials(deepcopy=False))
        if best is not None and best.number == report.number:
            self.attach(study)

    def attach(self, study: Study) -> None:
        """Draw the best trial: tokens alive by layer, and its worst sample."""
        best = trials.best_full(study.get_trials(deepcopy=False))
        assert best is not None  # called of a study that has one
        self._folder.mkdir(parents=True, exist_ok=True)
        store = FileSystemArtifactStore(self._folder)
        with TemporaryDirectory() as folder:
            for picture in self._drawn(study, best, Path(folder)):
                upload_artifact(artifact_store=store, file_path=str(picture), study_or_trial=study)

    def _drawn(self, study: Study, best: optuna.trial.FrozenTrial, folder: Path) -> list[Path]:
        stairs = folder / f"trial-{best.number:04}-staircase.svg"
        stairs.write_text(staircase_svg(staircase(study)), encoding="utf-8")
        if not self._objective.adapter.knows_grid:
            return [stairs]
        values = trials.measured(best)
        worst = max(range(len(values)), key=lambda sample: values[sample])
        overlay = folder / f"trial-{best.number:04}-overlay.png"
        draw_sample(self._objective, strategy_of(best), worst).save(overlay)
        return [stairs, overlay]
