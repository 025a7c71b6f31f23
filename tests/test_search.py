"""The public `search` on a real, tiny model: resumes, exports what deploys, leaves the model be."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.small_set import small_set
from tests.tiny import FAMILIES, tiny_model, tiny_processor
from vflowopt_search import Strategy, pruned, rescoring, search
from vflowopt_search import objective as objective_module
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.samples import fingerprint
from vflowopt_search.errors import CalibrationError, StudyError
from vflowopt_search.objective import build_objective
from vflowopt_search.outcome import TrialReport
from vflowopt_search.textbook import unbeaten


@pytest.mark.parametrize("family", FAMILIES)
def test_a_search_finds_a_strategy_that_deploys(family: str, tmp_path: Path) -> None:
    model, processor = tiny_model(family), tiny_processor(family)
    inputs = encode(processor, small_set().samples)
    before = model(**inputs).logits
    reports: list[TrialReport] = []
    result = search(
        model,
        processor,
        small_set(),
        retain=0.5,
        trials=5,
        storage=tmp_path / "study.journal",
        on_trial=reports.append,
    )
    assert [report.done for report in reports] == [1, 2, 3, 4, 5]
    assert torch.equal(model(**inputs).logits, before)
    result.save(tmp_path / "strategy.json")
    strategy = Strategy.load(tmp_path / "strategy.json")
    assert strategy.provenance is not None and strategy.provenance.calibration is not None
    assert strategy.provenance.calibration.sha256 == small_set().sha256
    with pruned(model, strategy):
        assert model(**inputs, logits_to_keep=1).logits.isfinite().all()


@pytest.mark.parametrize("given", [[1, 2], [{"image": "a.png", "question": "?"}], "data.jsonl"])
def test_samples_that_are_no_calibration_set_are_told_how_to_become_one(given: Any) -> None:
    model, processor = tiny_model("llava"), tiny_processor("llava")
    kind = type(given).__name__
    sentence = (
        rf"^calibration is a {kind} but must be a CalibrationSet; make one with from_dataset or "
        r"load_calibration of vflowopt_search\.calibration$"
    )
    with pytest.raises(CalibrationError, match=sentence):
        search(model, processor, given)
    with pytest.raises(CalibrationError, match=f"held_out is a {kind} but must be"):
        search(model, processor, small_set(), held_out=given)


def test_a_search_is_resumed_with_the_same_samples_only(tmp_path: Path) -> None:
    model, processor = tiny_model("llava"), tiny_processor("llava")
    journal = tmp_path / "study.journal"
    whole = search(model, processor, small_set(), retain=0.5, trials=4)
    search(model, processor, small_set(), retain=0.5, trials=2, storage=journal)
    resumed = search(model, processor, small_set(), retain=0.5, trials=4, storage=journal)
    assert resumed.outcome.divergence == whole.outcome.divergence
    assert resumed.best.stages == whole.best.stages
    with pytest.raises(StudyError, match="was made with calibration_sha256"):
        search(model, processor, small_set(seed=2), retain=0.5, trials=4, storage=journal)


def test_other_settings_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny_model("llava"), tiny_processor("llava")
    journal = tmp_path / "study.journal"
    again = partial(search, model, processor, trials=1, storage=journal)
    again(small_set(), retain=0.5)
    monkeypatch.setattr(objective_module, "build_objective", lambda *a, **k: pytest.fail("built"))
    with pytest.raises(StudyError, match=r"made with retain 0.5 but is resumed with retain 0.4"):
        again(small_set(), retain=0.4)
    with pytest.raises(StudyError, match=r"made with metric .* but is resumed with metric 'kl'"):
        again(small_set(), retain=0.5, metric="kl")
    with pytest.raises(StudyError, match=r"made with samples 7 but is resumed with samples 6"):
        again(small_set(6), retain=0.5)
    with pytest.raises(StudyError, match=r"made with calibration_sha256"):
        again(small_set(seed=2), retain=0.5)
    with pytest.raises(pytest.fail.Exception, match="built"):  # it may be a study on 7 of these 8
        again(small_set(8), retain=0.5)
    with pytest.raises(pytest.fail.Exception, match="built"):
        again(small_set(), retain=0.5, name="another")


def test_the_best_is_measured_once_on_samples_that_no_trial_saw(tmp_path: Path) -> None:
    model, processor, others = tiny_model("llava"), tiny_processor("llava"), small_set(5, seed=9)
    journal = tmp_path / "study.journal"
    found = search(
        model, processor, small_set(), retain=0.5, trials=3, storage=journal, held_out=others
    ).best.provenance
    assert found is not None and found.objective is not None and found.calibration is not None
    assert found.calibration.held_out == 5
    objective = build_objective(model, processor, others)
    best = search(model, processor, small_set(), retain=0.5, trials=3, storage=journal).best
    assert best.provenance == found  # kept with the study
    assert found.objective.held_out == pytest.approx(
        sum(objective.measure(best, range(5))) / 5, abs=1e-6
    )
    few = small_set(2, seed=11)
    again = search(
        model, processor, small_set(), retain=0.5, trials=3, storage=journal, held_out=few
    ).best.provenance
    assert again is not None and again.calibration is not None
    assert again.calibration.held_out == 2  # other samples, another figure
    grown = search(model, processor, small_set(), retain=0.5, trials=40, storage=journal).best
    assert grown.provenance is not None and grown.provenance.objective is not None
    assert grown.provenance.trial != found.trial
    assert grown.provenance.objective.held_out is None  # another trial is the best now


def test_what_the_command_line_would_note_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = tiny_model("llava"), tiny_processor("llava")
    journal, few = tmp_path / "study.journal", replace(small_set(), asked=60)
    others = replace(small_set(5, seed=9), asked=7)
    result = search(
        model, processor, few, retain=0.5, trials=5, storage=journal, held_out=others, name="mine"
    )
    assert all(record.levelname == "WARNING" for record in caplog.records)
    assert caplog.messages == [
        "separators are fixed at drop: the model has none",
        "7 instead of 60 samples: the data has no more",
        "held-out samples: 5 instead of 7 samples: the data has no more",
        unbeaten("pyramid"),
    ]
    assert f"study 'mine' in {journal}: 5 trials (" in repr(result)


def test_held_out_samples_are_measured_once_where_some_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their fingerprint is of those that are left; the one given is of all."""
    model, processor, others = tiny_model("llava"), tiny_processor("llava"), small_set(6, seed=9)
    thin = replace(others.samples[2], images=(Image.new("RGB", (1, 2000)),))
    samples = (*others.samples[:2], thin, *others.samples[3:])
    others = replace(others, samples=samples, sha256=fingerprint(samples))
    inner, measure, rescored = type(processor).__call__, rescoring.rescore, []

    def refuse_thin(self: Any, images: Any = None, **options: Any) -> Any:
        if any(max(image.size) == 2000 for row in images or [] for image in row):
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return inner(self, images=images, **options)

    def counted(*given: Any) -> float:
        rescored.append(measure(*given))
        return rescored[-1]

    monkeypatch.setattr(type(processor), "__call__", refuse_thin)
    monkeypatch.setattr(rescoring, "rescore", counted)
    for _ in range(3):
        found = search(
            model,
            processor,
            small_set(),
            retain=0.5,
            trials=2,
            storage=tmp_path / "study.journal",
            held_out=others,
        ).best.provenance
        assert found is not None and found.calibration is not None and found.objective is not None
        assert found.calibration.held_out == 5
        assert [found.objective.held_out] == rescored
