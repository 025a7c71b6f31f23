"""The report's first page: what was searched, what was found, what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vflowopt_search.report import figures, frames, html
from vflowopt_search.report.facts import Result, facts, results
from vflowopt_search.report.gaps import Gap, search_command
from vflowopt_search.report.runs import Run
from vflowopt_search.report.section import Section
from vflowopt_search.report.words import FOUND

KEPT_RESULT = (
    "This is a result that was kept, without the study: trials come from trials.parquet, and what "
    "only the study knows is listed under “Not in this report”."
)


def summary(run: Run, missing: Mapping[str, Gap]) -> Iterator[Section]:
    """The parts of the first tab.

    Args:
        run: any run of ours.
        missing: what cannot be shown of it.
    """
    yield _facts(run)
    yield _results(run)
    yield _missing(missing)


def _facts(run: Run) -> Section:
    command = search_command(run)
    return Section(
        key="facts",
        tab="summary",
        title="What was searched",
        text="",
        before=html.tiles(_headline(run)) + html.facts(facts(run).items()),
        after=f"<p class='label'>Make it again:</p>{html.code(command)}" if command else "",
        caution=KEPT_RESULT if run.restored else "",
    )


def _headline(run: Run) -> list[tuple[str, str, str]]:
    """The numbers in large: value, what it is, a remark."""
    rows = {result.name: result for result in results(run)}
    found = rows.get(FOUND)
    if found is None or found.divergence is None:
        return []
    tiles = [(f"{found.divergence:.4g}", "mean divergence", "0 is the whole model")]
    if run.retain is not None:
        tiles.insert(0, (f"{run.retain:.1%}", "visual tokens kept", "mean over decoder layers"))
    if found.held_out is not None:
        tiles.append((f"{found.held_out:.4g}", "on held-out samples", "not seen by the search"))
    if found.accuracy_kept is not None:
        remark = "" if found.accuracy is None else f"{found.accuracy:.1%} of answers right"
        if found.accuracy_range is not None:
            low, high = found.accuracy_range
            remark = f"95 % interval {low:.1%} to {high:.1%}"
        tiles.append((f"{found.accuracy_kept:.1%}", "accuracy kept", remark))
    if found.speedup is not None:
        tiles.append((f"{found.speedup:.2f} x", "sooner to the first token", _cache(found)))
    others = frames.comparison(run.study, run.baselines)
    plain = [pair for pair in zip(others.divergence, others.name, strict=True) if pair[1] != FOUND]
    if plain and found.divergence > 0:
        divergence, name = min(plain)
        ratio, words = divergence / found.divergence, "closer"
        if ratio < 1:
            ratio, words = found.divergence / max(divergence, 1e-9), "farther"
        remark = "the closest of the plain ones"
        tiles.append((f"{ratio:.1f} x", f"{words} than {name}", remark))
    return tiles


def _cache(found: Result) -> str:
    return "" if found.kv_bytes is None else f"KV cache {html.size(found.kv_bytes)}"


def _results(run: Run) -> Section:
    record = frames.comparison(run.study, run.baselines)
    rows = results(run)
    return Section(
        key="comparison",
        tab="summary",
        title="Beside plain strategies",
        text="All at the same budget, on the same samples. Divergence is how far the pruned model "
        "is from the whole one: lower is better.",
        figures=[figures.comparison_figure(record)] if len(record.name) > 1 else [],
        before=html.table(*_columns(rows)) if len(rows) > 1 else "",
        instead="There is nothing to compare the strategy found with yet.",
    )


def _missing(missing: Mapping[str, Gap]) -> Section:
    rows = [(gap.what, gap.why, gap.command) for gap in missing.values()]
    return Section(
        key="missing",
        tab="summary",
        title="Not in this report",
        text="What was not measured or not kept, and the command that adds it.",
        before=html.remarks(rows),
    )


def _columns(rows: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table of results, without columns that nothing fills."""
    columns = {
        "strategy": [row.name for row in rows],
        "tokens kept": [html.percent(row.retained) for row in rows],
        "divergence": [html.number(row.divergence) for row in rows],
        "held out": [html.number(row.held_out) for row in rows],
        "accuracy": [html.percent(row.accuracy) for row in rows],
        "accuracy kept": [html.percent(row.accuracy_kept) for row in rows],
        "95 % interval": [html.span(row.accuracy_range) for row in rows],
        "speed-up": ["" if row.speedup is None else f"{row.speedup:.2f} x" for row in rows],
        "KV cache": [html.size(row.kv_bytes) for row in rows],
    }
    return html.filled(columns)
