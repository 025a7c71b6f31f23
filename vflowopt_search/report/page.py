"""One or several runs as one HTML page that needs no network: words, tables, figures, overlays."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from vflowopt_search.documents import replace_atomically
from vflowopt_search.report import html
from vflowopt_search.report.runs import Run
from vflowopt_search.report.section import TABS, Section
from vflowopt_search.report.sections import sections
from vflowopt_search.report.several import named
from vflowopt_search.report.several_sections import compared

_HERE = Path(__file__).parent
OVERLAY_BYTES = 4_000_000
"""What the overlays of all runs together may take, so that a page stays below 8 MB."""
_DIGITS = 6
"""Significant digits of the numbers in figures; a pixel needs four."""


def write_report(runs: Run | Sequence[Run], path: str | Path, *, title: str | None = None) -> None:
    """Write the page of a run, or of several beside each other, whole or not at all.

    Args:
        runs: any runs of ours, also empty ones.
        path: the HTML file.
        title: heading; the names of the studies when None.

    Raises:
        OSError: the file cannot be written.
    """
    chosen = [runs] if isinstance(runs, Run) else list(runs)
    page = Template((_HERE / "page.html").read_text("utf-8")).substitute(
        title=escape(title or ", ".join(run.name for run in chosen)),
        style=(_HERE / "page.css").read_text("utf-8"),
        script=(_HERE / "page.js").read_text("utf-8"),
        runs=_run_switch(chosen),
        **_body(chosen),
        plotly=_plotly(),
    )
    replace_atomically(Path(path), page)


def _body(runs: Sequence[Run]) -> dict[str, str]:
    """The tabs, and what they hold: one block for each run, and one for all together."""
    several = len(runs) > 1
    blocks = [_block(compared(runs), "all")] if several else []
    allowance = OVERLAY_BYTES // max(1, len(runs))
    blocks += [_block(sections(run, allowance), str(n)) for n, run in enumerate(runs)]
    shown = [key for key in TABS if several or key != "compare"]
    return {"tabs": "".join(_tab(key) for key in shown), "blocks": "\n".join(blocks)}


def _tab(key: str) -> str:
    return (
        f"<button role='tab' type='button' id='tab-{key}' data-tab='{key}'>"
        f"{escape(TABS[key])}</button>"
    )


def _run_switch(runs: Sequence[Run]) -> str:
    if len(runs) < 2:
        return ""
    options = "".join(
        f"<option value='{number}'>{escape(name)}</option>"
        for number, name in enumerate(named(runs))
    )
    return f"<label class='pick'>Run <select id='run'>{options}</select></label>"


def _block(parts: Iterable[Section], run: str) -> str:
    """The sections of a run, by tab."""
    listed = [section for section in parts if section.instead or not section.empty]
    tabs = dict.fromkeys(section.tab for section in listed)
    panels = (
        f"<div class='panel' role='tabpanel' id='panel-{tab}-{run}' aria-labelledby='tab-{tab}' "
        f"tabindex='0' data-tab='{tab}' data-run='{run}'>"
        + "\n".join(_html(section, run) for section in listed if section.tab == tab)
        + "</div>"
        for tab in tabs
    )
    return "\n".join(panels)


def _html(section: Section, run: str) -> str:
    key = f"{section.key}-{run}"
    head = f"<section id='{key}' aria-labelledby='{key}-title'>"
    head += f"<h2 id='{key}-title'>{escape(section.title)}</h2>"
    if section.empty:
        way = html.code(section.way) if section.way else ""
        return f"{head}<p class='nothing'>{escape(section.instead)}</p>{way}</section>"
    head += f"<p>{escape(section.text)}</p>" if section.text else ""
    head += (
        f"<p class='caution' role='note'>{escape(section.caution)}</p>" if section.caution else ""
    )
    plots = "".join(
        _plot(figure, f"{key}-{number}") for number, figure in enumerate(section.figures)
    )
    several = " several" if len(section.figures) > 1 else ""
    drawn = f"<div class='plots{several}'>{plots}</div>" if plots else ""
    return f"{head}{section.before}{drawn}{section.after}</section>"


def _plot(figure: go.Figure, key: str) -> str:
    content = figure.to_plotly_json()
    alt = content["layout"].pop("meta", {}).get("alt", "")
    content["layout"].pop("template")  # the page has colours of its own, light and dark
    # No `<` is left, so that no name in it can end the script element.
    data = json.dumps(_slim(content), separators=(",", ":"), default=list).replace("<", "\\u003c")
    height = figure.layout.height
    return (
        f"<div class='plot' id='{key}' role='img' aria-label='{escape(alt)}' "
        f"style='min-height:{height}px'></div>"
        f"<script type='application/json' id='{key}-data'>{data}</script>"
    )


def _slim(value: Any) -> Any:
    """The same with numbers of few digits."""
    if isinstance(value, dict):
        return {key: _slim(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_slim(each) for each in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


@cache
def _plotly() -> str:
    """plotly.js in a third of its size; the page unpacks it."""
    return b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode("ascii")
