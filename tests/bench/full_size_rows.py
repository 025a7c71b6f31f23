"""One line per side of a comparison at full size: what `tests.bench.full_size` writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch

from tests.bench.subjects import Subject
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.benchmark.plan import Plan
from vflowopt_search.benchmark.prompts import Size, by_processor
from vflowopt_search.benchmark.records import Benchmark, Side, Spread
from vflowopt_search.benchmark.records import Row as Measured
from vflowopt_search.benchmark.run import benchmark
from vflowopt_search.ops.dispatch import why_no_kernels
from vflowopt_search.strategy import Strategy


@dataclass(frozen=True)
class Row:
    """One side of a comparison; times are seconds, and ratios are unpruned over pruned.

    Attributes:
        image, tiles: pixels, and tiles through the vision encoder.
        beside: the strategy that the comparison was made for.
        retained: share of the visual tokens alive, mean over the decoder layers.
        first_token_s: from pixels to the first token; quartiles around it.
        encoder_s, decoder_s: the part before the decoder, and the decoder's.
        kv_bytes: counted on the cache's tensors after the prompt.
        peak_bytes: most memory that torch had allocated (on a CPU: that the process held).
        first_token_ratio, decoder_ratio: speed-ups; empty for the unpruned side.
        decoder_allowed, share: speed-up that the FLOPs allow, and how much of it was reached.
        trial_s, trials_per_hour: of full trials on `samples` images.
        paid_once_s: the unpruned model and the attention maps, once per study.
        kernels: whether the Triton kernels answered, or why not.
        note: what did not fit, if anything.
    """

    model: str
    dtype: str
    attention: str
    kernels: str
    transformers: str
    image: str
    tiles: int
    visual_tokens: int
    text_tokens: int
    beside: str
    side: str
    retained: float | None
    repeats: int
    first_token_s: float | None = None
    first_token_low: float | None = None
    first_token_high: float | None = None
    encoder_s: float | None = None
    decoder_s: float | None = None
    decoder_low: float | None = None
    decoder_high: float | None = None
    kv_bytes: int | None = None
    peak_bytes: int | None = None
    first_token_ratio: float | None = None
    decoder_ratio: float | None = None
    decoder_ratio_low: float | None = None
    decoder_ratio_high: float | None = None
    decoder_allowed: float | None = None
    share: float | None = None
    samples: int | None = None
    trial_s: float | None = None
    trials_per_hour: float | None = None
    paid_once_s: float | None = None
    note: str = ""

    def __str__(self) -> str:
        """One line for a terminal."""
        line = f"{self.side} beside {self.beside}, {self.visual_tokens} visual tokens"
        if self.first_token_s is None or self.decoder_s is None or self.kv_bytes is None:
            return f"{line}: {self.note}"
        line += f": first token {self.first_token_s:.4f} s, decoder {self.decoder_s:.4f} s, "
        line += f"cache {self.kv_bytes / 2**20:.1f} MiB"
        if self.peak_bytes is not None:
            line += f", peak {self.peak_bytes / 2**20:.0f} MiB"
        if self.first_token_ratio is not None and self.decoder_ratio is not None:
            line += f", {self.first_token_ratio:.2f} x to the first token"
            line += f", {self.decoder_ratio:.2f} x in the decoder"
        return line if self.share is None else f"{line} ({self.share:.0%} of what FLOPs allow)"


def speed_rows(
    subject: Subject, name: str, strategy: Strategy, size: Size, repeats: int
) -> Iterator[Row]:
    """Both sides of one strategy, in alternation."""
    adapter = adapter_for(subject.model)
    prompts = by_processor(adapter, subject.processor)
    plan = Plan(resolutions=(size,), new_tokens=2, repeats=repeats)
    found = benchmark(subject.model, strategy, prompts, plan, random_weights=True)
    [measured] = found.rows
    tiles = prompts.batch(1, size)["pixel_values"].shape[1]
    base = _head(subject, found, measured, tiles=tiles, beside=name)
    yield replace(base, side="unpruned", retained=1.0, **_costs(measured.unpruned))
    ratios = _ratios(measured)
    yield replace(
        base, side="pruned", retained=measured.retained, **_costs(measured.pruned), **ratios
    )


def _head(
    subject: Subject, found: Benchmark, measured: Measured, *, tiles: int, beside: str
) -> Row:
    """What both sides share."""
    return Row(
        model=subject.name,
        dtype=found.dtype,
        attention=found.attention,
        kernels=kernels_on(subject.model.device),
        transformers=version("transformers"),
        image=f"{measured.width} x {measured.height}",
        tiles=tiles,
        visual_tokens=measured.visual_tokens,
        text_tokens=measured.text_tokens,
        beside=beside,
        side="",
        retained=None,
        repeats=found.repeats,
        note=measured.note or "",
    )


def kernels_on(device: torch.device) -> str:
    """Whether the Triton kernels answer on this device, or why not."""
    if device.type != "cuda":
        return "no GPU"
    return why_no_kernels(device) or "Triton"


def _costs(side: Side | None) -> dict[str, Any]:
    """The figures of one side; none where it ran out of memory."""
    if side is None:
        return {}
    return {
        **_spread("first_token", side.first_token_s),
        **_spread("decoder", side.decoder_s),
        "encoder_s": side.encoding_s.median,
        "kv_bytes": side.kv_bytes,
        "peak_bytes": side.peak_bytes,
    }


def _spread(name: str, found: Spread) -> dict[str, float]:
    return {f"{name}_s": found.median, f"{name}_low": found.low, f"{name}_high": found.high}


def _ratios(measured: Measured) -> dict[str, Any]:
    """Speed-ups; none where a side ran out of memory."""
    first, decoder = measured.first_token_speed_up, measured.decoder_speed_up
    if first is None or decoder is None:
        return {}
    return {
        "first_token_ratio": first.median,
        "decoder_ratio": decoder.median,
        "decoder_ratio_low": decoder.low,
        "decoder_ratio_high": decoder.high,
        "decoder_allowed": measured.possible_speed_up,
        "share": measured.share_reached,
    }
