"""Overlays and thumbnails as HTML, with their images inside."""

from __future__ import annotations

from html import escape
from itertools import chain, zip_longest
from pathlib import Path

from vflowopt_search import run_folder
from vflowopt_search.report import html
from vflowopt_search.report.frames import SampleHeatmap
from vflowopt_search.report.overlay import Panel, opened, sample_panels
from vflowopt_search.report.overlay_record import Overlays, Role, SampleOverlay
from vflowopt_search.report.runs import Run
from vflowopt_search.report.words import share

SHOWN_THUMBNAILS = 8
_ROLES: dict[Role, str] = {"worst": "highest", "median": "middle", "best": "lowest"}
"""What the divergence of a sample is among all."""


def overlay_cards(run: Run, allowance: int) -> str:
    """A card for each recorded sample, until they take `allowance` bytes; empty without any."""
    overlays, folder = run.overlays, _folder(run)
    if overlays is None or folder is None:
        return ""
    if overlays.note:
        return f"<p class='nothing'>{escape(overlays.note)}</p>"
    cards: dict[int, str] = {}
    for sample in _in_turns(overlays):
        card = _card(overlays, sample, folder)
        if cards and sum(map(len, cards.values())) + len(card) > allowance:
            break
        cards[sample.sample] = card
    shown = [cards[s.sample] for s in overlays.samples if s.sample in cards]
    left = len(overlays.samples) - len(shown)
    more = (
        f"<p class='nothing'>{left} more samples are in {escape(str(folder))}.</p>" if left else ""
    )
    return "".join(shown) + more


def thumbnails(run: Run, record: SampleHeatmap) -> str:
    """The hardest samples in small, as far as they were recorded."""
    overlays, folder = run.overlays, _folder(run)
    if overlays is None or folder is None or not record.trial:
        return ""
    known = {thumbnail.sample: thumbnail for thumbnail in overlays.thumbnails}
    cells = []
    for place, sample in enumerate(record.sample[:SHOWN_THUMBNAILS]):
        thumbnail = known.get(sample)
        image = opened(folder, thumbnail.picture) if thumbnail else None
        if thumbnail is None or image is None:
            continue
        mean = sum(row[place] for row in record.value) / len(record.value)
        cells.append(
            f"<figure class='thumb'>{html.picture(image, f'sample {sample}')}<figcaption>"
            f"<b>{sample}</b> <span>{mean:.3g}</span><br>{escape(_short(thumbnail.prompt))}"
            f"</figcaption></figure>"
        )
    head = "<p class='label'>The hardest samples and their mean divergence:</p>"
    return f"{head}<div class='thumbs'>{''.join(cells)}</div>" if cells else ""


def _card(overlays: Overlays, sample: SampleOverlay, folder: Path) -> str:
    views = "".join(_view(panels) for panels in sample_panels(overlays, sample, folder))
    left_out = sample.all_views - len(sample.views)
    more = f" {len(sample.views)} of its {sample.all_views} views are shown." if left_out else ""
    return (
        f"<article class='card'><h3><span class='role {sample.role}'>{_ROLES[sample.role]}</span> "
        f"sample {sample.sample} <small>divergence {sample.divergence:.4g}</small></h3>"
        f"<p class='prompt'>{escape(_short(sample.prompt, 300))}</p>"
        f"<p class='label'>{escape(tokens_in_words(overlays, sample))}{more}</p>{views}</article>"
    )


def tokens_in_words(overlays: Overlays, sample: SampleOverlay) -> str:
    """How many visual tokens of a sample are kept, stage by stage."""
    alive = [f"{sample.visual_tokens} visual tokens"]
    for layer, count, off in zip(
        overlays.stages, sample.stage_tokens, sample.stage_elsewhere, strict=True
    ):
        ends = f"{off} of them {'corresponds' if off == 1 else 'correspond'} to no image patch"
        bare = f" ({ends}, as row separators do)" if off else ""
        alive.append(f"{count} from layer {layer}{bare}")
    ratio = f"retention ratio on this sample {share(sample.mean_retained)}"
    return f"{', '.join(alive)}; {ratio}, mean over the decoder layers."


def _view(panels: list[Panel]) -> str:
    cells = "".join(
        f"<figure>{html.picture(panel.image, panel.caption)}"
        f"<figcaption>{escape(panel.caption)}</figcaption></figure>"
        for panel in panels
    )
    return f"<div class='panels'>{cells}</div>"


def _in_turns(overlays: Overlays) -> list[SampleOverlay]:
    """One of each role, then the next of each: what remains when there is no room for all."""
    by_role = [[s for s in overlays.samples if s.role == r] for r in ("worst", "median", "best")]
    return [sample for sample in chain.from_iterable(zip_longest(*by_role)) if sample is not None]


def _folder(run: Run) -> Path | None:
    return None if run.folder is None else run.folder / run_folder.OVERLAYS


def _short(text: str, most: int = 80) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= most else f"{one_line[: most - 1]}…"
