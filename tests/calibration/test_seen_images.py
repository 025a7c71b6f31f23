"""Which images a search saw, in a file: counted again in other samples, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.calibration.test_shared_images import a_video, moving, set_of, showing
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.calibration.seen_images import SeenImages, fingerprints
from vflowopt_search.calibration.shared_images import about_others
from vflowopt_search.errors import CalibrationError


def test_samples_that_show_a_seen_image_are_counted(tmp_path: Path) -> None:
    seen = set_of([showing(1, 2), showing(2), a_video(moving(7), moving(8))])
    asked = [showing(1), showing(3, 2), showing(3), Sample("words", "?", ())]
    asked += [a_video(moving(9)), a_video(moving(8), moving(9))]
    SeenImages.of(seen).save(tmp_path / "seen.json")
    found = SeenImages.load(tmp_path / "seen.json")
    assert found == SeenImages.of(seen)
    assert found.calibration_sha256 == seen.sha256
    assert len(found.images) == 4 and {len(image) for image in found.images} == {16}
    shown = [fingerprints(sample) for sample in asked]
    assert found.count(shown) == 3 == len(asked) - len(about_others(asked, seen.samples))
    assert SeenImages.of(set_of([])).count(shown) == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "Invalid JSON"),
        ('{"images": []}', "`calibration_sha256` is missing; add it, or remove the file"),
        ('{"format": "vflowopt-seen-images/2"}', "`format` is 'vflowopt-seen-images/2' but must"),
        (None, r"seen.json cannot be read \(No such file or directory\); check the path"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str | None, sentence: str) -> None:
    file = tmp_path / "seen.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(CalibrationError, match=sentence):
        SeenImages.load(file)
