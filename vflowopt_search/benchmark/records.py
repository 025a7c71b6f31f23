"""What a benchmark measured, as a file: `vflowopt-benchmark/1`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import ClassVar, Literal

from pydantic import ValidationError

from vflowopt_search.documents import Value, complaint, parse_json, replace_atomically
from vflowopt_search.errors import BenchmarkError, VFlowOptError

FORMAT = "vflowopt-benchmark/1"


class Part(Value):
    """A value of a benchmark file."""

    refusal: ClassVar[type[VFlowOptError]] = BenchmarkError


class Spread(Part):
    """The middle of several measurements: median and quartiles."""

    low: float
    """A quarter of the measurements are below."""
    median: float
    """Half of them are."""
    high: float
    """Three quarters are."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one measurement."""
        if len(values) == 1:
            return cls(low=values[0], median=values[0], high=values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(low=low, median=median(values), high=high)


class Side(Part):
    """One model, whole or pruned, on one kind of prompt."""

    visual_per_layer: tuple[int, ...]
    """Visual tokens of one prompt that are alive in each decoder layer."""
    first_token_s: Spread
    """Seconds until the first new token: all of the prompt's work."""
    encoding_s: Spread
    """The part of it before the decoder: vision encoder and projector, which pruning leaves whole;
    on the pruned side its scores are read here."""
    decoder_s: Spread
    """The part of it from the decoder on."""
    decode_tokens_per_s: Spread
    """New tokens a second, all rows of the batch together, once the prompt has been read."""
    end_to_end_s: Spread
    """Seconds of the whole answer."""
    kv_bytes: int
    """Bytes that the KV cache holds after the prompt, counted on its tensors."""
    peak_bytes: int | None
    """Most memory at any time, weights included: what torch allocated on a GPU, what the process
    held (resident) on a CPU under Linux; null where it cannot be measured."""
    prefill_flops: float | None
    """Floating-point operations of the decoder's prefill, all rows; null where not counted."""


class Row(Part):
    """The whole and the pruned model on one kind of prompt.

    Ratios are medians over repeats in which both ran one after the other; above 1, pruning is
    better. They are null where a side could not run, and where nothing was removed.
    """

    batch_size: int
    """Prompts answered together."""
    width: int | None
    """Of the image, in pixels; null where the model knows but one size."""
    height: int | None
    """Of the image, in pixels."""
    visual_tokens: int
    """Visual tokens of one prompt, before pruning."""
    text_tokens: int
    """All its other tokens."""
    retained: float | None
    """Share of the visual tokens alive, averaged over decoder layers, as it happened."""
    unpruned: Side | None
    """The unpruned model; null where it ran out of memory."""
    pruned: Side | None
    """The pruned model; null where it ran out of memory or nothing was removed."""
    scoring_s: float | None = None
    """Seconds that reading scores adds to the vision encoder: the median of pruned less unpruned,
    at least 0; null also in files of before it was written."""
    first_token_speed_up: Spread | None
    """Time to the first token, unpruned over pruned."""
    decoder_speed_up: Spread | None
    """Time of the decoder's prefill, unpruned over pruned, `scoring_s` counted to the latter."""
    decode_speed_up: Spread | None
    """Tokens a second once the prompt has been read, pruned over unpruned."""
    end_to_end_speed_up: Spread | None
    """Time of the whole answer, unpruned over pruned."""
    possible_speed_up: float | None
    """What the FLOP count allows the decoder's prefill; null where not counted."""
    share_reached: float | None
    """Measured over possible speed-up of the decoder's prefill."""
    note: str | None
    """Why something is null, in one sentence."""


class Benchmark(Part):
    """A whole benchmark: where it ran, and one row for each kind of prompt."""

    format: Literal["vflowopt-benchmark/1"] = "vflowopt-benchmark/1"
    """Version of this file."""
    strategy: str
    """Name of the strategy."""
    strategy_sha256: str | None = None
    """Fingerprint of what it prunes, shortened; null in files of before it was written."""
    model: str
    """What was loaded."""
    model_type: str
    """Its family."""
    random_weights: bool
    """Whether the weights are random: then times count, answers do not."""
    prompt: str
    """Where the prompts came from."""
    device: str
    """Hardware, by name: the GPU's, or the CPU's."""
    threads: int
    """CPU threads of one operation."""
    dtype: str
    """Precision of the weights."""
    attention: str
    """Attention implementation of the decoder."""
    weight_bytes: int
    """Bytes of all weights."""
    new_tokens: int
    """Tokens of each answer."""
    repeats: int
    """Measurements of each side."""
    kinds: int | None = None
    """Kinds of prompt asked for, more than there are rows where the run was interrupted; null in
    files of before it was written."""
    seed: int | None = None
    """Of noise images and random text; null in files of before it was written."""
    versions: dict[str, str]
    """Of what computed it; the commit too where it is a checkout of this package."""
    created: str
    """When, ISO 8601."""
    rows: tuple[Row, ...]
    """One for each batch size and resolution."""

    @classmethod
    def load(cls, path: str | Path) -> Benchmark:
        """Read a file; BenchmarkError says what is wrong with it and where."""
        try:
            text = Path(path).read_text("utf-8")
            content = parse_json(text)
        except OSError as error:
            raise BenchmarkError(
                f"{path} cannot be read ({error.strerror}); check the path"
            ) from error
        except ValueError as error:
            raise BenchmarkError(
                f"{path} is not valid JSON ({error}); run the benchmark again"
            ) from error
        # Before the fields: a newer version has fields that we would wrongly call unknown.
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise BenchmarkError(
                f"{path} has format {found!r} but this version reads {FORMAT!r}; upgrade "
                "vflowopt-search or run the benchmark again"
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise BenchmarkError(f"{path}: {complaint(error)}") from None

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all; BenchmarkError where it cannot be written."""
        try:
            replace_atomically(Path(path).resolve(), self.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise BenchmarkError(
                f"{path} cannot be written ({error.strerror}); choose an existing folder that "
                "can be written to"
            ) from error
