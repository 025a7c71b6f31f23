"""What strategies do to one sample, as a picture: for notebooks and dashboards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from vflowopt_search.errors import UnsupportedError
from vflowopt_search.objective import Objective
from vflowopt_search.report.overlay import Panel, opened, sheet, view_panels
from vflowopt_search.report.overlay_record import Role, View, save_overlays
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
    views = _panels(objective, strategy, sample)[1]
    return _stacked([sheet(panels, columns) for _, panels in views])


def draw_strategies(
    objective: Objective, strategies: Mapping[str, Strategy], sample: int
) -> Image.Image:
    """A calibration sample under several strategies, one row of pictures for each.

    Of each: its divergence on this sample, what every stage leaves alive, and what was merged. Of
    a sample with several views the one with most tokens is shown.

    Args:
        objective: has the model and the samples.
        strategies: what is applied, by the name to write above the row.
        sample: number of the sample.

    Raises:
        UnsupportedError: where this model's tokens lie on their image is not known.
    """
    rows: dict[str, list[Panel]] = {}
    for name, strategy in strategies.items():
        divergence, views = _panels(objective, strategy, sample, maps=False)
        _, largest = max(views, key=lambda view: view[0].rows * view[0].cols)
        rows[f"{name}: divergence {divergence:.3f}"] = largest
    columns = max(map(len, rows.values()))
    return _stacked([sheet(panels, columns, title) for title, panels in rows.items()])


def _panels(
    objective: Objective, strategy: Strategy, sample: int, *, maps: bool = True
) -> tuple[float, list[tuple[View, list[Panel]]]]:
    """The divergence of a sample, and its views with the panels of each."""
    roles: dict[int, Role] = {sample: "worst"}
    measured = {sample: objective.measure(strategy, [sample])[0]}
    overlays, pictures = record_overlays(objective, strategy, measured, roles=roles)
    if overlays.note:
        raise UnsupportedError(f"{overlays.note} Draw the staircase instead.")
    bare = {} if maps else {"importance": None, "entropy": None}
    views = [view.model_copy(update=bare) for view in overlays.samples[0].views]
    with TemporaryDirectory() as folder:
        save_overlays(overlays, pictures, Path(folder))
        seen = [opened(Path(folder), view.picture) for view in views]
    drawn = [view_panels(*pair, overlays.stages) for pair in zip(views, seen, strict=True)]
    return measured[sample], list(zip(views, drawn, strict=True))


def _stacked(sheets: list[Image.Image]) -> Image.Image:
    width, height = max(one.width for one in sheets), sum(one.height for one in sheets)
    whole = Image.new("RGB", (width, height), "white")
    top = 0
    for one in sheets:
        whole.paste(one, (0, top))
        top += one.height
    return whole
