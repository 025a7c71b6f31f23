"""Calibration data: image-text samples from any source, chosen by seed, told by a fingerprint."""

from vflowopt_search.calibration.choice import from_dataset as from_dataset
from vflowopt_search.calibration.choice import load_calibration as load_calibration
from vflowopt_search.calibration.encoding import encode as encode
from vflowopt_search.calibration.rows import Columns as Columns
from vflowopt_search.calibration.samples import CalibrationSet as CalibrationSet
from vflowopt_search.calibration.samples import Mark as Mark
from vflowopt_search.calibration.samples import Sample as Sample
from vflowopt_search.calibration.samples import Turn as Turn
from vflowopt_search.calibration.samples import Video as Video
from vflowopt_search.calibration.samples import fingerprint as fingerprint
from vflowopt_search.calibration.shared_images import without_images_of as without_images_of
from vflowopt_search.calibration.video import read_video as read_video
