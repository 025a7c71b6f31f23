"""Measure the shipped weights and write their model card: `python -m vflowopt_search.testbed.card`.

Every number in `MODEL_CARD.md` comes from here; the text around them is below.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import ProcessorMixin

from vflowopt_search.testbed import WEIGHTS_FOLDER, load_model, load_processor
from vflowopt_search.testbed.data import AskedScene, evaluation_scenes
from vflowopt_search.testbed.integrity import WEIGHTS_FILE, file_sha256
from vflowopt_search.testbed.measure import (
    Keeper,
    LlavaModel,
    attention_keeper,
    blind_right,
    generated_right,
    pruned_right,
    random_keeper,
)
from vflowopt_search.testbed.questions import KINDS

CARD = Path(__file__).parent / "MODEL_CARD.md"
KEEPS = (0.5, 0.25, 0.1, 0.05)
NUM_VISUAL = 259
_EXAMPLES = {
    "digit": "what digit is on the red circle ?",
    "colour_by_digit": "what colour is the object with digit 3 ?",
    "shape_by_digit": "what shape is the object with digit 3 ?",
    "colour": "what colour is the circle ?",
    "shape": "what shape is the red object ?",
    "extreme": "which object is leftmost ?",
    "count": "how many red objects are there ?",
    "exist": "is there a red circle ?",
    "digit_by_colour": "what digit is on the red object ?",
    "digit_by_shape": "what digit is on the circle ?",
}


@dataclass(frozen=True)
class Measured:
    """Accuracies from 0 to 1; `by_kind` maps a kind of question to (questions, whole, blind)."""

    num_questions: int
    whole: float
    blind: float
    wrong_image: float
    by_kind: Mapping[str, tuple[int, float, float]]
    pruned: Mapping[str, Sequence[float]]


def measure(model: LlavaModel, processor: ProcessorMixin, scenes: Sequence[AskedScene]) -> Measured:
    """Every figure of the card on these scenes."""
    questions = [q for asked in scenes for q in asked.questions]
    whole = generated_right(model, processor, scenes)
    blind = blind_right(questions)
    by_kind = {}
    for kind in KINDS:
        rows = [k for k, q in enumerate(questions) if q.kind == kind]
        by_kind[kind] = (len(rows), _mean(whole[k] for k in rows), _mean(blind[k] for k in rows))
    keepers: dict[str, Keeper] = {
        "random": random_keeper(0, NUM_VISUAL),
        "attention received in the last vision layer": attention_keeper(model),
    }
    pruned = {
        name: [_mean(pruned_right(model, processor, scenes, keep, keeper)) for keep in KEEPS]
        for name, keeper in keepers.items()
    }
    wrong_image = _mean(generated_right(model, processor, scenes, shift=1))
    return Measured(len(questions), _mean(whole), _mean(blind), wrong_image, by_kind, pruned)


def _mean(right: Iterable[bool]) -> float:
    values = list(right)
    return sum(values) / len(values)


def card_text(measured: Measured, sha256: str, seed: int) -> str:
    """The model card as Markdown."""
    kinds = "\n".join(
        f"| {kind} | *{_EXAMPLES[kind]}* | {number} | {whole:.3f} | {blind:.3f} |"
        for kind, (number, whole, blind) in measured.by_kind.items()
    )
    pruned = "\n".join(
        f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |"
        for name, values in measured.pruned.items()
    )
    header = " | ".join(f"{100 * keep:.0f} %" for keep in KEEPS)
    return _TEXT.format(
        sha256=sha256,
        seed=seed,
        number=measured.num_questions,
        whole=measured.whole,
        blind=measured.blind,
        wrong_image=measured.wrong_image,
        kinds=kinds,
        keeps=header,
        rule="|---" * (len(KEEPS) + 1) + "|",
        pruned=pruned,
    )


_TEXT = """\
# The testbed model

A multimodal model of 2.97 million parameters (6 MB in float16) that ships with
`vflowopt_search`, so that searching, testing and the claims of this package need no network. It
is trained, not random: it reads handwritten digits, colours, shapes and places in pictures that
it has never seen. It serves to compare pruning strategies; it answers nothing else.

SHA-256 of `weights/model.safetensors`: `{sha256}`

## What it is
A stock `LlavaOnevisionForConditionalGeneration`: a SigLIP tower (width 128, six layers, four
heads, tiles of 56 pixels, patches of 8: 49 tokens a tile), a two-layer projector, and a Qwen2
language model (width 128, eight layers, four heads, tied embeddings, a vocabulary of 52 words).
Any-resolution with pinpoints 56 and 112: a picture of 112x112 becomes 49 + 14 x 15 = 259 visual
tokens. Answers have one or two words, in lower case.

## What it learned from
Scenes of 112x112 pixels, drawn by `scenes.py`: three to eight objects of 18 to 25 pixels (eight
colours, six shapes) on plain, shaded, noisy or littered ground, each with a real handwritten
digit. The digits are those of the UCI *Optical Recognition of Handwritten Digits* data set
(E. Alpaydin and C. Kaynak, CC BY 4.0, see `data/README.md`); training, validation and test use
disjoint drawings (but not disjoint writers, whom the data set does not name).

Training (`python -m vflowopt_search.testbed.train`, seed 0, 6,600 steps, about an hour on two CPU
cores): the tower alone on what each patch shows; tower and language model on single tiles; the
tower again, on what each patch of an object shows; whole scenes; reading digits on single tiles;
whole scenes again, at last with the harder questions asked more often. Eight questions per picture
in one sequence, Muon and AdamW, peak rate 2e-3, bfloat16 autocast. `curriculum.py` holds every
number. The shipped weights come from a run that was stopped and resumed several times; a second run
from nothing, not interrupted, gave the same file to the bit (same kind of machine, torch 2.13.0).

## What it can do
Exact match of the generated answer on {number} questions about unseen scenes with unseen digits
(evaluation set, seed {seed}).

| kind | example | questions | accuracy | blind |
|---|---|---|---|---|
| **all** | | {number} | **{whole:.3f}** | {blind:.3f} |
{kinds}

*Blind* answers each question template with its commonest answer in this very set, which flatters
it. With the picture of another scene the model itself scores {wrong_image:.3f}.

## What pruning does to it
Accuracy on the same questions when only part of the visual tokens enters the language model;
survivors keep their positions.

| kept | {keeps} |
{rule}
{pruned}

## Limits
Synthetic pictures of one size, one phrasing per kind of question, no world knowledge. Figures on
other processors may differ in the last digit. Whatever is found here about a strategy must be
confirmed on the model that it is meant for.

## Measured by
`python -m vflowopt_search.testbed.card` rewrites this file from the shipped weights.
"""


def main() -> None:
    """Command line: measure, then rewrite the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0, help="of the evaluation set")
    parser.add_argument("--out", type=Path, default=CARD)
    args = parser.parse_args()
    scenes = list(evaluation_scenes(args.questions, args.seed))
    measured = measure(load_model(), load_processor(), scenes)
    text = card_text(measured, file_sha256(WEIGHTS_FOLDER / WEIGHTS_FILE), args.seed)
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
