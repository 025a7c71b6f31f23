"""What a strategy does to one sample, as a picture: for notebooks and dashboards."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from vflowopt_search.errors import UnsupportedError
from vflowopt_search.objective import Objective
from vflowopt_search.report.overlay import sample_panels, sheet
from vflowopt_search.report.overlay_record import Role, save_overlays
from vflowopt_search.report.overlay_recording import record_overlays
from vflowopt_search.strategy import Strategy


def draw_sample(
    objective: Objective, strategy: Strategy, sample: int, *, columns: int = 4
) -> Image.Image:
    """A calibration sample as the strategy leaves it: stages, merged tokens, importance, entropy.

    Args:
        objective: has the model and the samples.
        strategy: what is applied.
        sample: number of the sample.
        columns: pictures in a row.

    Raises:
        UnsupportedError: where this model's tokens lie on their image is not known.
    """
    roles: dict[int, Role] = {sample: "worst"}
    measured = {sample: objective.measure(strategy, [sample])[0]}
    overlays, pictures = record_overlays(objective, strategy, measured, roles=roles)
    if overlays.note:
        raise UnsupportedError(f"{overlays.note} Draw the staircase instead.")
    with TemporaryDirectory() as folder:
        save_overlays(overlays, pictures, Path(folder))
        views = sample_panels(overlays, overlays.samples[0], Path(folder))
    return _stacked([sheet(panels, columns) for panels in views])


def _stacked(sheets: list[Image.Image]) -> Image.Image:
    width, height = max(one.width for one in sheets), sum(one.height for one in sheets)
    whole = Image.new("RGB", (width, height), "white")
    top = 0
    for one in sheets:
        whole.paste(one, (0, top))
        top += one.height
    return whole
