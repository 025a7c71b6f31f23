"""A record of overlays without a model: two views, three stages, every kind of token."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.fake_study import fake_run
from vflowopt_search import run_folder
from vflowopt_search.report.overlay_record import (
    Overlays,
    Role,
    SampleOverlay,
    Thumbnail,
    View,
    encoded,
    fingerprint,
    save_overlays,
)
from vflowopt_search.report.runs import Run, load_run
from vflowopt_search.strategy import Strategy

RED, BLUE = (200, 30, 30), (30, 30, 200)


def two_by_three(picture: str | None) -> View:
    """Two rows and three columns; cell 5 has no token, cells 1 and 2 became the token of 2."""
    return View(
        rows=2,
        cols=3,
        picture=picture,
        survived=(0, 0, 2, 1, 3, -1),
        group=(-1, 0, 0, -1, -1, -1),
        anchors=(2,),
        importance=(0.0, 0.25, 0.5, 0.75, 1.0, None),
        entropy=(1.0, 1.0, 2.0, 2.0, 3.0, None),
    )


def fake_overlays(strategy: Strategy, folder: Path, samples: int = 3) -> Overlays:
    """Written to `folder`; sample 0 is red and worst, 1 blue and median, 2 red and best."""
    pictures: dict[str, bytes] = {}
    found, thumbnails = [], []
    roles: list[Role] = ["worst", "median", "best"]
    for sample in range(samples):
        colour = BLUE if sample % 3 == 1 else RED
        name, content = encoded(Image.new("RGB", (60 + sample, 40 + sample), colour), 384)
        pictures[name] = content
        hard = 23 - sample  # of the 24 samples of a fake study, the last are the hardest
        thumbnails.append(Thumbnail(sample=hard, id=str(hard), prompt="Why?", picture=name))
        found.append(
            SampleOverlay(
                sample=sample,
                id=str(sample),
                prompt=f"What is <b>{sample}</b>?",
                role=roles[sample % 3],
                divergence=0.5 - sample / 10,
                visual_tokens=6,
                stage_tokens=(4, 2, 1),
                stage_elsewhere=(1, 0, 0),
                tokens_per_layer=(4, 4, 2, 1),
                views=(two_by_three(name), two_by_three(None)),
                all_views=5,
            )
        )
    overlays = Overlays(
        strategy_sha256=fingerprint(strategy),
        stages=(0, 2, 3),
        samples=tuple(found),
        thumbnails=tuple(thumbnails),
    )
    save_overlays(overlays, pictures, folder)
    return overlays


def whole_run(folder: Path, total: int = 20) -> Run:
    """A run with everything in its folder that a search leaves there."""
    outcome = fake_run(storage=folder / run_folder.JOURNAL, total=total)
    assert outcome.best is not None
    outcome.best.save(folder / run_folder.STRATEGY)
    (folder / run_folder.BASELINES).write_text('{"random": 2.0, "</script>": 1.0}')
    (folder / run_folder.COMMAND).write_text("vflowopt-search search a/model --retain 0.25")
    fake_overlays(outcome.best, folder / run_folder.OVERLAYS, samples=9)
    return load_run(folder)
