"""The report's first page: what was searched, what was found, what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from vflowopt_search.report import figures, frames, html
from vflowopt_search.report.caution import beaten
from vflowopt_search.report.facts import Result, facts, results, textbook_of
from vflowopt_search.report.gaps import Gap, search_command
from vflowopt_search.report.measured import UNPRUNED
from vflowopt_search.report.runs import Run
from vflowopt_search.report.section import Section
from vflowopt_search.report.words import FOUND, share, times
from vflowopt_search.textbook import unbeaten
from vflowopt_search.trials import TEXTBOOK
from vflowopt_search.whole_tokens import overshoot

Tile = tuple[str, str, str]
"""A number, what it is, and a remark."""
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
    tokens = run.summary.get("calibration", {}).get("visual_tokens", ())
    whole = "" if run.retain is None else overshoot(run.retain, run.strategy, tokens)
    cautions = (unbeaten(textbook_of(run)), whole, KEPT_RESULT * run.restored)
    return Section(
        key="facts",
        tab="summary",
        title="What was searched",
        text="",
        before=html.tiles(_headline(run)) + html.facts(facts(run).items()),
        after=f"<p class='label'>To reproduce this run:</p>{html.code(command)}" if command else "",
        caution=" ".join(filter(None, cautions)),
    )


def _headline(run: Run) -> Iterator[Tile]:
    """The numbers in large."""
    rows = {result.name: result for result in results(run)}
    found = rows.get(FOUND)
    if found is None or found.divergence is None:
        return
    if run.retain is not None:
        kept = "of the visual tokens kept, mean over the decoder layers"
        yield share(run.retain), "target retention ratio", kept
    yield f"{found.divergence:.4g}", "mean divergence", "the unpruned model has 0"
    if found.held_out is not None:
        yield f"{found.held_out:.4g}", "held-out divergence", "on samples that no trial saw"
    yield from _beside(found, frames.others(run.study, run.baselines))
    if found.accuracy_kept is not None:
        yield f"{found.accuracy_kept:.1%}", "accuracy kept", _accuracy(found)
    yield from _savings(found, rows.get(UNPRUNED, Result(UNPRUNED)))


def _beside(found: Result, baselines: Mapping[str, float]) -> Iterator[Tile]:
    """How many times lower the divergence is than that of the closest baseline."""
    if not baselines or not found.divergence:
        return
    name, divergence = next(iter(baselines.items()))
    ratio, words = divergence / found.divergence, "lower"
    if ratio < 1:
        ratio, words = found.divergence / max(divergence, 1e-9), "higher"
    yield (
        times(ratio),
        f"{words} divergence than {name}",
        "the closest baseline, on the samples of the search",
    )


def _accuracy(found: Result) -> str:
    told = "" if found.accuracy is None else f"{found.accuracy:.1%} of answers right"
    if found.accuracy_range is not None:
        low, high = found.accuracy_range
        told = f"95 % interval {low:.1%} to {high:.1%}"
    return "; ".join(filter(None, (told, found.scored)))


def _savings(found: Result, unpruned: Result) -> Iterator[Tile]:
    """What was measured of time and memory, with the conditions, without which it means nothing."""
    if found.speedup is not None:
        yield f"{found.speedup:.2f} x", "faster time to first token", found.conditions or ""
    if found.kv_bytes is not None:
        of = f", unpruned {html.size(unpruned.kv_bytes)}" if unpruned.kv_bytes else ""
        yield html.size(found.kv_bytes), "KV cache", f"after the prefill{of}"


def _results(run: Run) -> Section:
    record = frames.comparison(run.study, run.baselines)
    rows = results(run)
    sentence = beaten(rows)
    return Section(
        key="comparison",
        tab="summary",
        title="Comparison with baselines",
        text="All strategies keep the same share of the visual tokens and are measured on the same "
        "samples. Divergence is the distance between the pruned model and the unpruned model: "
        "lower is better.",
        figures=[figures.comparison_figure(record)] if len(record.name) > 1 else [],
        before=html.table(*html.filled(columns(rows))) + unheld([run]) if len(rows) > 1 else "",
        after=conditions([run]),
        caution=f"Caution: {sentence}." if sentence else "",
        instead="There is no baseline to compare the strategy found with yet.",
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


def columns(rows: Sequence[Result]) -> dict[str, list[str]]:
    """The table of results: cells by the name of their column, empty where nothing was measured."""
    return {
        "strategy": [row.name for row in rows],
        "visual tokens kept": [html.percent(row.retained) for row in rows],
        "divergence": [html.number(row.divergence) for row in rows],
        "held-out divergence": [html.number(row.held_out) for row in rows],
        "accuracy": [html.percent(row.accuracy) for row in rows],
        "accuracy kept": [html.percent(row.accuracy_kept) for row in rows],
        "95 % interval": [html.span(row.accuracy_range) for row in rows],
        "time to first token": [html.speed_up(row.speedup) for row in rows],
        "KV cache": [html.size(row.kv_bytes) for row in rows],
    }


def unheld(runs: Sequence[Run]) -> str:
    """Why textbook strategies have no held-out value, a line below a table where others have."""
    rows = [(run, row) for run in runs for row in results(run)]
    empty = [row for run, row in rows if row.name in _textbook(run) and row.held_out is None]
    if not empty or all(row.held_out is None for _, row in rows):
        return ""
    return (
        "<p class='label'>Textbook strategies were measured as trials of the search, so they have "
        "no held-out value.</p>"
    )


def _textbook(run: Run) -> set[str]:
    """Names of the textbook strategies among the trials, but of those that are baselines."""
    named = {trial.user_attrs.get(TEXTBOOK) for trial in frames.measured_trials(run.study)}
    return {name for name in named if name is not None} - run.baselines.keys()


def conditions(runs: Sequence[Run]) -> str:
    """What accuracies, times and KV caches are of, lines below their table; empty of none."""
    rows = [row for run in runs for row in results(run)]
    told = [f"Accuracy: {row.scored}" for row in rows if row.scored]
    told += [
        f"Time to first token and KV cache: {row.conditions}" for row in rows if row.conditions
    ]
    return "".join(f"<p class='label'>{escape(each)}.</p>" for each in dict.fromkeys(told))
