"""Draw the README's pictures from the quickstart's committed result: `python -m tests.pictures`.

Figures are those of the report, drawn by Chromium; overlays come from running the strategy.
"""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from tests.browser import browser
from vflowopt_search import Strategy, build_objective
from vflowopt_search.budget import alive_ratios
from vflowopt_search.calibration.choice import from_dataset
from vflowopt_search.report import figures
from vflowopt_search.report.frames import History, Staircase
from vflowopt_search.report.overlay import sheet, view_panels
from vflowopt_search.report.overlay_recording import record_overlays
from vflowopt_search.resources import studies_folder
from vflowopt_search.testbed import load_model, load_processor
from vflowopt_search.testbed.data import calibration_dataset

DOCS = Path(__file__).parents[1] / "docs"
QUICKSTART = studies_folder() / "quickstart"
PLAIN = ("random", "uniform", "attention")
SAMPLE = 1
"""Among the first scenes of the calibration set."""
SIZE = (760, 360)
"""Pixels, before the screen's own scale of 2."""


def overlay(strategy: Strategy, file: Path, samples: int = 8) -> None:
    """What the strategy leaves of a sample's mosaic, where most of its tokens are."""
    chosen = from_dataset(calibration_dataset(samples), name="testbed", num_samples=samples)
    objective = build_objective(load_model(), load_processor(), chosen, metric="total_variation")
    overlays, pictures = record_overlays(objective, strategy, {SAMPLE: 0.0}, roles={SAMPLE: "best"})
    mosaic = max(overlays.samples[0].views, key=lambda view: view.rows * view.cols)
    assert mosaic.picture is not None
    picture = Image.open(BytesIO(pictures[mosaic.picture])).convert("RGB")
    panels = view_panels(mosaic, picture, overlays.stages)
    sheet(panels, columns=3).save(file, optimize=True)  # not shrunk: outlines keep their colour


def shrink(file: Path) -> None:
    """Fewer colours, so that a clone stays light."""
    with Image.open(file) as picture:
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(file, optimize=True)


def staircase(strategy: Strategy) -> go.Figure:
    """Tokens alive by layer, of the strategy and of the baselines."""
    assert strategy.model is not None and strategy.budget is not None
    depth = strategy.model.decoder_layers
    flat = [strategy.budget.mean_retained] * depth
    alive = {"found": alive_ratios(strategy.stages, depth), "random, uniform, attention": flat}
    figure = figures.staircase_figure(Staircase(list(range(depth)), alive))
    figure.update_traces(cliponaxis=False)  # nearly nothing is a line too, not half of one
    figure.update_xaxes(ticklabelstandoff=8)  # or its 0 touches that of the other axis
    return figure


def history() -> go.Figure:
    """The trials of the study."""
    table = pd.read_parquet(QUICKSTART / "trials.parquet")
    table = table[table["value"].notna()]
    compared = json.loads((QUICKSTART / "summary.json").read_text("utf-8"))["comparison"]
    full = table["value"].where(table["outcome"] == "complete")
    record = History(
        trial=table["number"].tolist(),
        value=table["value"].tolist(),
        best=full.cummin().ffill().tolist(),
        outcome=table["outcome"].tolist(),
        label=table["textbook"].fillna("").tolist(),
        baselines={row["name"]: row["divergence"] for row in compared if row["name"] in PLAIN},
    )
    return figures.history_figure(record)


def shoot(drawn: dict[str, go.Figure], folder: Path) -> None:
    """Save figures as pictures."""
    with TemporaryDirectory() as scratch, browser(Path(scratch) / "profile") as page:
        page.size(*SIZE, scale=2)
        for name, figure in drawn.items():
            html = Path(scratch) / f"{name}.html"
            figure.update_layout(width=SIZE[0], height=SIZE[1])
            ready = "document.documentElement.dataset.ready = 'yes'"
            figure.write_html(html, config={"displayModeBar": False}, post_script=ready)
            page.open(html)
            page.picture(folder / f"{name}.png", selector=".main-svg")
            shrink(folder / f"{name}.png")


def main(folder: Path) -> None:
    """Write all pictures."""
    folder.mkdir(exist_ok=True)
    strategy = Strategy.load(QUICKSTART / "strategy.json")
    overlay(strategy, folder / "overlay.png")
    shoot({"staircase": staircase(strategy), "history": history()}, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS)
