"""A benchmark as people read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vflowopt_search.cli.console import interval, legend, table
from vflowopt_search.report.words import size, three_digits

if TYPE_CHECKING:
    from vflowopt_search.benchmark.records import Benchmark, Row, Side, Spread

Line = tuple[str, str, str, str]
LEGEND = (
    "times: median of all runs (quartiles)",
    "gain: of the two sides that ran one after the other; above 1x the pruned model is better",
    "decoder: its gain counts, for the pruned side, also what reading scores adds to the vision "
    "encoder",
    "what FLOPs allow: the whole decoder's FLOPs for the prompt over the pruned one's",
)
ON_A_CPU = "peak memory: of the whole process, this program and its libraries included"


def rendered(found: Benchmark) -> list[str | Table | Text]:
    """What was measured where, then a table for each kind of prompt."""
    weights = ", random weights" if found.random_weights else ""
    threads = f", {found.threads} threads" if found.device.startswith("cpu") else ""
    parts: list[str | Table | Text] = [
        f"[bold]{escape(found.strategy)}[/bold] on {escape(found.model)} "
        f"({found.model_type}{weights}, {size(found.weight_bytes)})",
        f"{found.device}{threads}, {found.dtype}, {found.attention} attention; answers of "
        f"{found.new_tokens} tokens; {found.repeats} runs of each side, in alternation",
    ]
    for row in found.rows:
        parts += ["", _title(row)]
        if row.unpruned is not None or row.pruned is not None:
            parts.append(table(("", "unpruned", "pruned", "gain"), lines(row)))
        if row.note is not None:
            parts.append(f"[yellow]{escape(row.note)}[/yellow]")
    on_a_cpu = found.device.startswith("cpu")
    return [*parts, "", legend([*LEGEND, ON_A_CPU] if on_a_cpu else LEGEND)]


def _title(row: Row) -> str:
    kept = "" if row.retained is None else f", {row.retained:.1%} of the visual ones kept"
    return (
        f"[bold]batch {row.batch_size}, image {row.width}x{row.height}[/bold]: "
        f"{row.visual_tokens} visual and {row.text_tokens} text tokens each{kept}"
    )


def lines(row: Row) -> list[Line]:
    """The table's lines; what was not measured is empty."""
    reached = "" if row.share_reached is None else f"{row.share_reached:.0%} of what FLOPs allow"
    return [
        _timed(row, "first token", lambda s: s.first_token_s, row.first_token_speed_up),
        _timed(row, "  vision, not pruned", lambda s: s.encoding_s, None),
        _timed(row, "  decoder", lambda s: s.decoder_s, row.decoder_speed_up),
        *([("", "", "", reached)] if reached else []),
        _line(
            row,
            "tokens after it",
            lambda s: _pace(s.decode_tokens_per_s),
            _times(row.decode_speed_up),
        ),
        _timed(row, "whole answer", lambda s: s.end_to_end_s, row.end_to_end_speed_up),
        _counted(row, "KV cache", lambda s: s.kv_bytes, size),
        _counted(row, "peak memory", lambda s: s.peak_bytes, size),
        _counted(row, "decoder FLOPs", lambda s: s.prefill_flops, _flops),
    ]


def _line(row: Row, name: str, cell: Callable[[Side], str], gain: str) -> Line:
    cells = ["" if side is None else cell(side) for side in (row.unpruned, row.pruned)]
    return name, cells[0], cells[1], gain


def _timed(row: Row, name: str, spread: Callable[[Side], Spread], gain: Spread | None) -> Line:
    return _line(row, name, lambda side: _seconds(spread(side)), _times(gain))


def _counted(
    row: Row, name: str, of: Callable[[Side], float | None], shown: Callable[[float], str]
) -> Line:
    """A line of something of which less is better."""

    def cell(side: Side) -> str:
        value = of(side)
        return "not measured" if value is None else shown(value)

    whole, short = (None if side is None else of(side) for side in (row.unpruned, row.pruned))
    gain = f"{whole / short:.2f}x less" if whole and short else ""
    return _line(row, name, cell, gain)


def _seconds(spread: Spread) -> str:
    unit, scale = ("s", 1.0) if spread.median >= 1 else ("ms", 1e3)
    low, middle, high = (value * scale for value in (spread.low, spread.median, spread.high))
    return f"{three_digits(middle)} {unit} ({three_digits(low)} to {three_digits(high)})"


def _pace(spread: Spread) -> str:
    low, middle, high = map(three_digits, (spread.low, spread.median, spread.high))
    return f"{middle}/s ({low} to {high})"


def _times(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.median:.2f}x ({interval(spread.low, spread.high, '.2f')})"


def _flops(count: float) -> str:
    return f"{three_digits(count / 1e12)} T" if count >= 1e12 else f"{three_digits(count / 1e9)} G"
