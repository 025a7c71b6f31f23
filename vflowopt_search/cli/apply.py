"""`apply`: one prompt with and without a strategy, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vflowopt_search.cli.console import print_json, quiet_progress_bars, stdout, table
from vflowopt_search.cli.loading import ModelSource, load
from vflowopt_search.cli.options import Device, Dtype, DtypeName, Json, TrustRemoteCode
from vflowopt_search.errors import CalibrationError
from vflowopt_search.strategy import Strategy

if TYPE_CHECKING:
    from PIL.Image import Image

Tokens = Annotated[int, typer.Option(min=1, help="Answer at most this many tokens.")]


@dataclass(frozen=True)
class Answer:
    """What the model said, how long it took, and what it saw.

    Attributes:
        seconds: wall time of prompt and answer together.
        tokens_per_layer: visual tokens alive at every decoder layer.
    """

    text: str
    seconds: float
    tokens_per_layer: list[int]


def apply(
    file: Annotated[Path, typer.Argument(help="A strategy file.")],
    model: Annotated[str, typer.Option(help="Hub name, folder, or `testbed`.")],
    image: Annotated[list[Path], typer.Option(help="Image file; repeat for several.")],
    prompt: Annotated[str, typer.Option(help="What to ask about the image.")],
    max_new_tokens: Tokens = 64,
    device: Device = "auto",
    dtype: Dtype = DtypeName.auto,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Answer a prompt about an image, without and with a strategy: text, tokens, time.

    Example: vflowopt-search apply runs/quickstart/strategy.json --model testbed
    --image scene.png --prompt "what color is the circle"
    """
    strategy = Strategy.load(file)
    pictures = tuple(read_image(path) for path in image)
    quiet_progress_bars()
    loaded = load(ModelSource(model, device, dtype.value, trust_remote_code))
    whole, pruned = answers(loaded, strategy, pictures, prompt, max_new_tokens)
    if as_json:
        print_json({"strategy": strategy.name, "unpruned": asdict(whole), "pruned": asdict(pruned)})
        return
    rows = [("unpruned", *_row(whole)), (strategy.name, *_row(pruned))]
    stdout().print(table(("", "answer", "visual tokens by layer", "time"), rows))


def read_image(path: Path) -> Image:
    """An image file as RGB, upright, by the same rules as calibration samples.

    Raises:
        CalibrationError: the file is not there or is not an image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    from vflowopt_search.calibration.images import to_rgb

    try:
        with Image.open(path) as picture:
            upright: Any = ImageOps.exif_transpose(picture)  # a copy: the file is closed behind it
            return to_rgb(upright)
    except UnidentifiedImageError as error:
        raise CalibrationError(f"{path} is not an image that can be read; convert it") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise CalibrationError(f"{path} cannot be read ({reason}); check the path") from error


def answers(
    loaded: tuple[Any, Any],
    strategy: Strategy,
    images: tuple[Image, ...],
    prompt: str,
    max_new_tokens: int,
) -> tuple[Answer, Answer]:
    """The answer of the whole model and of the pruned one, each timed after a warm-up."""
    from vflowopt_search.calibration.encoding import encode
    from vflowopt_search.calibration.samples import Sample
    from vflowopt_search.deploy import pruned

    model, processor = loaded
    inputs = encode(processor, [Sample(id="prompt", prompt=prompt, images=images)], model.device)
    _generate(model, inputs, 1)  # the first call also sets up threads, kernels and caches
    with pruned(model, strategy) as applied:
        _generate(model, inputs, 1)
        short_ids, short_time = _generate(model, inputs, max_new_tokens)
        assert applied.last is not None  # the prompt has images
        last = applied.last
    whole_ids, whole_time = _generate(model, inputs, max_new_tokens)
    depth = len(last.tokens_per_layer[0])
    return (
        Answer(_text(processor, whole_ids), whole_time, [last.visual_tokens[0]] * depth),
        Answer(_text(processor, short_ids), short_time, list(last.tokens_per_layer[0])),
    )


def _generate(model: Any, inputs: Mapping[str, Any], max_new_tokens: int) -> tuple[Any, float]:
    """Greedy token ids of the answer alone, and the seconds it took."""
    _wait_for(model.device)
    start = time.perf_counter()
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    _wait_for(model.device)
    return ids[0, inputs["input_ids"].shape[1] :], time.perf_counter() - start


def _wait_for(device: Any) -> None:
    """Let work that a GPU still has queued end, so that the clock counts it."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _text(processor: Any, ids: Any) -> str:
    return str(processor.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _row(answer: Answer) -> tuple[str, str, str]:
    runs: list[list[int]] = []  # [tokens, number of layers]
    for tokens in answer.tokens_per_layer:
        if runs and runs[-1][0] == tokens:
            runs[-1][1] += 1
        else:
            runs.append([tokens, 1])
    kept = ", ".join(f"{tokens} x {layers}" for tokens, layers in runs)
    return answer.text, kept, f"{answer.seconds:.3f} s"
