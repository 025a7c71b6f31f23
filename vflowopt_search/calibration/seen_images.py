"""Which images a search saw: kept beside its strategy, for who measures it on others.

One short fingerprint for each image or video frame: 5 kB of 256 images.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import ClassVar, Final, Literal, Self

from pydantic import ValidationError

from vflowopt_search.calibration.samples import CalibrationSet, Sample
from vflowopt_search.calibration.shared_images import shown_images
from vflowopt_search.documents import DIGITS, Value, complaint, replace_atomically
from vflowopt_search.errors import CalibrationError, VFlowOptError

FORMAT: Final = "vflowopt-seen-images/1"


class SeenImages(Value):
    """The images of a calibration set, by their fingerprints."""

    refusal: ClassVar[type[VFlowOptError]] = CalibrationError

    format: Literal["vflowopt-seen-images/1"] = FORMAT
    calibration_sha256: str
    """Fingerprint of the samples, as the strategy file has it."""
    images: tuple[str, ...]
    """Of each image and video frame the first digits of a SHA-256 over its pixels."""

    @classmethod
    def of(cls, samples: CalibrationSet) -> Self:
        """Those of a calibration set."""
        images = sorted(set().union(*map(fingerprints, samples.samples)))
        return cls(calibration_sha256=samples.sha256, images=tuple(images))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Those in a file.

        Raises:
            CalibrationError: the file cannot be read, or holds something else.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise CalibrationError(
                f"{path} cannot be read ({error.strerror}); check the path"
            ) from error
        except ValidationError as error:
            raise CalibrationError(f"{path}: {complaint(error)}, or remove the file") from None

    def save(self, path: Path) -> None:
        """Write a file, whole or not at all."""
        replace_atomically(path, self.model_dump_json() + "\n")

    def count(self, shown: Sequence[Set[str]]) -> int:
        """How many samples show one of these images, given the `fingerprints` of each sample."""
        known = frozenset(self.images)
        return sum(not known.isdisjoint(images) for images in shown)


def fingerprints(sample: Sample) -> set[str]:
    """Those of a sample's images and video frames, as `SeenImages` has them."""
    return {image[:DIGITS] for image in shown_images(sample)}
