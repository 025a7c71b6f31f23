"""Training batches: tiles, what each patch shows, and several questions about one image.

A row is a function of (seed, step, row), so training repeats and resumes exactly.

Shape suffixes: B = images, T = tiles, P = patches of a tile, L = text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vflowopt_search.testbed.curriculum import Phase
from vflowopt_search.testbed.digits import Split
from vflowopt_search.testbed.model import PATCH, TILE
from vflowopt_search.testbed.questions import Question, ask
from vflowopt_search.testbed.scenes import COLOURS, SHAPES, Scene, make_scene
from vflowopt_search.testbed.vocabulary import ASSISTANT, EOS, VOCABULARY, word_ids

IGNORED = -100
NUM_DENSE_CLASSES = (len(COLOURS) + 1, len(SHAPES) + 1, 11)  # colour, shape, digit; 0 = none
_MIN_COVER = 0.1  # of a patch, before it counts as showing an object

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Pixels and labels of one step.

    `dense_BTP3` holds colour, shape and digit per patch. `block_BL` numbers the questions of an
    image from 1, -1 on padding; `place_BL` counts tokens within a question; `target_BL` is the
    next token where it belongs to an answer, and otherwise IGNORED.
    """

    pixels_BTCHW: Tensor
    dense_BTP3: Tensor
    ids_BL: Tensor
    block_BL: Tensor
    place_BL: Tensor
    target_BL: Tensor


@dataclass(frozen=True)
class _Row:
    tiles: NDArray[np.uint8]
    dense: Labels
    questions: list[Question]


def make_batch(phase: Phase, seed: int, step: int, split: Split = "train") -> Batch:
    """The batch of one step; `step` counts over all phases."""
    rows = [_make_row(phase, seed, step, row, split) for row in range(phase.batch_size)]
    pixels = torch.from_numpy(np.stack([row.tiles for row in rows])).permute(0, 1, 4, 2, 3)
    text = [_text_of(row.questions) for row in rows]
    longest = max(len(columns[0]) for columns in text)
    fill = (0, -1, 0, IGNORED)
    ids_BL, block_BL, place_BL, target_BL = (
        torch.tensor([t[k] + [fill[k]] * (longest - len(t[k])) for t in text], dtype=torch.long)
        for k in range(4)
    )
    dense_BTP3 = torch.from_numpy(np.stack([row.dense for row in rows]))
    if not phase.ground:
        dense_BTP3[..., 1:][dense_BTP3[..., 1:] == 0] = IGNORED
    return Batch(pixels.float() / 127.5 - 1, dense_BTP3, ids_BL, block_BL, place_BL, target_BL)


def _make_row(phase: Phase, seed: int, step: int, row: int, split: Split) -> _Row:
    rng = np.random.default_rng([seed, step, row])
    scene = make_scene(rng, phase.style, split)
    if phase.kind == "tower":
        tile = _base_tile(scene) if rng.random() < 0.2 else _random_crop(rng, scene)
        return _Row(*_stack([tile]), questions=[])
    kinds = phase.kinds_at(step)
    tiles = [_crop(scene, 0, 0)] if phase.kind == "tile" else any_resolution_tiles(scene)
    return _Row(*_stack(tiles), questions=ask(rng, scene, phase.questions_per_image, kinds))


_Tile = tuple[NDArray[np.uint8], Labels]


def _stack(tiles: list[_Tile]) -> tuple[NDArray[np.uint8], Labels]:
    return np.stack([tile[0] for tile in tiles]), np.stack([tile[1] for tile in tiles])


def any_resolution_tiles(scene: Scene) -> list[_Tile]:
    """The reduced image, then its four tiles by rows, as the image processor cuts them."""
    corners = [(left, top) for top in (0, TILE) for left in (0, TILE)]
    return [_base_tile(scene)] + [_crop(scene, left, top) for left, top in corners]


def _base_tile(scene: Scene) -> _Tile:
    small = Image.fromarray(scene.image).resize((TILE, TILE), Image.Resampling.BICUBIC)
    dense = _dense_labels(scene, scene.owner, legible=[False] * len(scene.objects))
    return np.asarray(small), dense


def _random_crop(rng: np.random.Generator, scene: Scene) -> _Tile:
    left, top = rng.integers(0, len(scene.image) - TILE + 1, size=2).tolist()
    return _crop(scene, left, top)


def _crop(scene: Scene, left: int, top: int) -> _Tile:
    box = (slice(top, top + TILE), slice(left, left + TILE))
    margin = 4
    legible = [
        margin <= o.centre[0] - left <= TILE - margin
        and margin <= o.centre[1] - top <= TILE - margin
        for o in scene.objects
    ]
    return scene.image[box], _dense_labels(scene, scene.owner[box], legible)


def _dense_labels(scene: Scene, owner: NDArray[np.int8], legible: list[bool]) -> Labels:
    """Colour, shape and digit that each patch shows, shape (P, 3)."""
    cells = TILE // PATCH
    fold = len(owner) // cells
    blocks = owner.reshape(cells, fold, cells, fold)
    cover = np.stack([(blocks == k).mean((1, 3)) for k in range(len(scene.objects))])
    classes = [(0, 0, 0)] + [
        (
            1 + list(COLOURS).index(o.colour),
            1 + SHAPES.index(o.shape),
            1 + o.digit if clear else IGNORED,
        )
        for o, clear in zip(scene.objects, legible, strict=True)
    ]
    shown = np.where(cover.max(0) >= _MIN_COVER, 1 + cover.argmax(0), 0).reshape(-1)
    return np.array(classes, dtype=np.int64)[shown]


def _text_of(questions: list[Question]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Token ids, question number, place in the question and target of every text token."""
    ids: list[int] = []
    blocks: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    for number, question in enumerate(questions, start=1):
        prompt = [*word_ids(question.text), VOCABULARY[ASSISTANT]]
        answer = [*word_ids(question.answer), VOCABULARY[EOS]]
        tokens = prompt + answer[:-1]
        ids += tokens
        blocks += [number] * len(tokens)
        places += range(len(tokens))
        targets += [IGNORED] * (len(prompt) - 1) + answer
    return ids, blocks, places, targets
