"""`apply`: one prompt with and without a strategy, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vflowopt_search.cli.console import print_json, quiet_progress_bars, stdout, table
from vflowopt_search.cli.model_choice import Model, chosen_model
from vflowopt_search.cli.options import (
    Device,
    Dtype,
    DtypeName,
    Fps,
    Frames,
    Json,
    StrategyPath,
    TrustRemoteCode,
)
from vflowopt_search.errors import CalibrationError
from vflowopt_search.model_source import SHIPPED, ModelSource, load
from vflowopt_search.strategy import Strategy
from vflowopt_search.strategy_hub import find_strategy

if TYPE_CHECKING:
    from PIL.Image import Image

    from vflowopt_search.calibration.samples import Sample, Video

Tokens = Annotated[int, typer.Option(min=1, help="Answer at most this many tokens.")]


@dataclass(frozen=True)
class Answer:
    """What the model said, how long it took, and what it saw.

    Attributes:
        seconds: wall time of prompt and answer together.
        tokens_per_layer: visual tokens alive at every decoder layer; empty where there are none.
    """

    text: str
    seconds: float
    tokens_per_layer: list[int]


def apply(
    file: StrategyPath,
    model: Model = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Question; <image> marks where an image goes. Default for `testbed`: a bundled "
            "question with its image."
        ),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="Image file; may be repeated. Default: none.")
    ] = None,
    video: Annotated[
        list[Path] | None,
        typer.Option(help="Video file or folder of frames; may be repeated. Default: none."),
    ] = None,
    frames: Frames = None,
    fps: Fps = None,
    system: Annotated[str | None, typer.Option(help="System prompt. Default: none.")] = None,
    max_new_tokens: Tokens = 64,
    device: Device = "auto",
    dtype: Dtype = DtypeName.auto,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Answer a prompt with and without a strategy: text, visual tokens, time.

    Example: vflowopt-search apply runs/quickstart

    Example: vflowopt-search apply runs/mine --image a.png --prompt "what is it"
    """
    from vflowopt_search.calibration.images import open_image
    from vflowopt_search.calibration.video import check_frame_choice, read_video

    strategy = find_strategy(file)
    check_frame_choice(frames, fps)
    if not video and (frames is not None or fps is not None):
        raise typer.BadParameter(
            "it chooses frames of a video but no --video is given; give one, or leave it out",
            param_hint="--fps" if frames is None else "--frames",
        )
    images = tuple(open_image(path) for path in image or [])
    videos = tuple(read_video(path, frames=frames, fps=fps) for path in video or [])
    name = chosen_model(model, strategy.model.name if strategy.model else None)
    if prompt is None:
        sample = shipped_question(name, more=bool(images or videos or system))
    else:
        sample = asked(prompt, images, videos, system)
    quiet_progress_bars()
    loaded = load(ModelSource(name, device, dtype.value, trust_remote_code))
    whole, pruned = answers(loaded, strategy, sample, max_new_tokens)
    if as_json:
        told = {"strategy": strategy.name, "prompt": sample.prompt, "right": sample.answer}
        print_json({**told, "unpruned": asdict(whole), "pruned": asdict(pruned)})
        return
    if prompt is None:
        question = f"{sample.prompt} (right: {sample.answer})"
        stdout().print(question, markup=False, soft_wrap=True)
    rows = [("unpruned", *_row(whole)), (strategy.name, *_row(pruned))]
    stdout().print(table(("", "answer", "visual tokens by layer", "time"), rows))


def shipped_question(model: str, *, more: bool) -> Sample:
    """A question that comes with the shipped model, about a picture that it was not trained on.

    Args:
        model: name of the model.
        more: whether anything else was given that belongs to a prompt.

    Raises:
        typer.BadParameter: the model is another one, or there is more.
    """
    from vflowopt_search.calibration.choice import from_dataset
    from vflowopt_search.calibration.rows import Columns
    from vflowopt_search.testbed.data import evaluation_dataset

    if model != SHIPPED or more:
        raise typer.BadParameter(
            "nothing is asked; only the bundled model has a question of its own, and only with its "
            "own picture: say what to ask",
            param_hint="--prompt",
        )
    columns = Columns(prompt="question", answer="answer")
    [sample] = from_dataset(
        evaluation_dataset(1), name=SHIPPED, columns=columns, num_samples=1
    ).samples
    return sample


def asked(
    prompt: str,
    images: tuple[Image, ...],
    videos: tuple[Video, ...] = (),
    system: str | None = None,
) -> Sample:
    """The prompt as a sample, images before the words unless as many marks say where they belong.

    Raises:
        CalibrationError: the prompt has no words, or a mark for what is not given at all.
    """
    from vflowopt_search.calibration.conversations import arranged, is_usual, single_question
    from vflowopt_search.calibration.samples import Mark, Sample, Turn, count_marks

    chat = single_question(prompt, [Turn("system", (system,))] if system else [])
    if not chat.question:
        raise CalibrationError(f"the prompt {prompt!r} has no words; ask something")
    held = {Mark.IMAGE: len(images), Mark.VIDEO: len(videos)}
    for mark in Mark:
        if not held[mark] and count_marks(chat.turns, mark):
            raise CalibrationError(
                f"the prompt {prompt!r} says where {mark.value}s belong but no --{mark.value} is "
                "given; give one, or take the mark out"
            )
    turns = arranged(chat.turns, held)
    return Sample(
        id="prompt",
        prompt=chat.question,
        images=images,
        turns=() if is_usual(turns) else turns,
        videos=videos,
    )


def answers(
    loaded: tuple[Any, Any], strategy: Strategy, sample: Sample, max_new_tokens: int
) -> tuple[Answer, Answer]:
    """The answer of the unpruned model and of the pruned one, each timed after a warm-up."""
    from vflowopt_search.adapters.registry import adapter_for
    from vflowopt_search.calibration.encoding import encode
    from vflowopt_search.deploy import pruned
    from vflowopt_search.selfcheck.check import require_checked

    model, processor = loaded
    require_checked(adapter_for(model), processor)
    inputs = encode(processor, [sample], model.device)
    _generate(model, inputs, 1)  # the first call also sets up threads, kernels and caches
    with pruned(model, strategy) as applied:
        _generate(model, inputs, 1)
        short_ids, short_time = _generate(model, inputs, max_new_tokens)
        last = applied.last  # None for a prompt without images
    whole_ids, whole_time = _generate(model, inputs, max_new_tokens)
    alive = [] if last is None else list(last.tokens_per_layer[0])
    before = [] if last is None else [last.visual_tokens[0]] * len(alive)
    return (
        Answer(_text(processor, whole_ids), whole_time, before),
        Answer(_text(processor, short_ids), short_time, alive),
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
    if not any(answer.tokens_per_layer):
        kept = "no visual tokens, nothing to prune"
    return answer.text or "(empty)", kept, f"{answer.seconds:.3f} s"
