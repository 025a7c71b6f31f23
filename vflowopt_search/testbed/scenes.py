"""Scenes: coloured shapes with a handwritten digit on each, before one of four backgrounds.

A scene is a function of its seeds alone: `np.random.default_rng([seed, index, ...])`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vflowopt_search.testbed.digits import Split, digit_ink, split_indices

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 35, 35),
    "green": (30, 150, 50),
    "blue": (35, 60, 205),
    "yellow": (235, 220, 50),
    "orange": (240, 140, 30),
    "purple": (130, 45, 165),
    "cyan": (60, 210, 220),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
_LIGHT = {"yellow", "orange", "cyan", "white"}  # these carry dark ink
_PLACING_TRIES = 40

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class SceneStyle:
    """How large a scene is and how full; sizes and the side in pixels."""

    side: int
    min_objects: int
    max_objects: int
    min_size: int
    max_size: int


@dataclass(frozen=True)
class SceneObject:
    """One object: what it is and its square box, `left` and `top` in pixels."""

    colour: str
    shape: str
    digit: int
    digit_row: int
    left: int
    top: int
    size: int

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box, (x, y) in pixels."""
        return self.left + self.size / 2, self.top + self.size / 2


@dataclass(frozen=True)
class Scene:
    """A picture, shape (side, side, 3), its objects, and which object each pixel shows.

    `owner` has shape (side, side): the index of the object, -1 on the background.
    """

    image: NDArray[np.uint8]
    owner: NDArray[np.int8]
    objects: tuple[SceneObject, ...]


def make_scene(rng: np.random.Generator, style: SceneStyle, split: Split) -> Scene:
    """Draw a scene of this style with digits of this split."""
    objects = _choose_objects(rng, style, split)
    canvas = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))](rng, style.side)
    owner = np.full((style.side, style.side), -1, dtype=np.int8)
    for index, thing in enumerate(objects):
        _draw(rng, canvas, owner, thing, index)
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), owner, objects)


def _choose_objects(
    rng: np.random.Generator, style: SceneStyle, split: Split
) -> tuple[SceneObject, ...]:
    placed: list[SceneObject] = []
    for _ in range(int(rng.integers(style.min_objects, style.max_objects + 1))):
        box = _free_box(rng, style, placed)
        if box is not None:
            placed.append(_choose_object(rng, split, box))
    return tuple(placed)


def _free_box(
    rng: np.random.Generator, style: SceneStyle, placed: list[SceneObject]
) -> tuple[int, int, int] | None:
    size = int(rng.integers(style.min_size, style.max_size + 1))
    corners = rng.integers(0, style.side - size + 1, size=(_PLACING_TRIES, 2)).tolist()
    for left, top in corners:
        if all(
            max(abs(left - o.left + (size - o.size) / 2), abs(top - o.top + (size - o.size) / 2))
            >= (size + o.size) / 2
            for o in placed
        ):
            return left, top, size
    return None


def _choose_object(
    rng: np.random.Generator, split: Split, box: tuple[int, int, int]
) -> SceneObject:
    digit = int(rng.integers(10))
    rows = split_indices(split)[digit]
    return SceneObject(
        colour=tuple(COLOURS)[rng.integers(len(COLOURS))],
        shape=SHAPES[rng.integers(len(SHAPES))],
        digit=digit,
        digit_row=int(rows[rng.integers(len(rows))]),
        left=box[0],
        top=box[1],
        size=box[2],
    )


def _draw(
    rng: np.random.Generator,
    canvas: Pixels,
    owner: NDArray[np.int8],
    thing: SceneObject,
    index: int,
) -> None:
    body = np.array(COLOURS[thing.colour], dtype=np.float32) + rng.integers(-14, 15, size=3)
    ink_colour = np.float32(20 if thing.colour in _LIGHT else 245)
    box = (slice(thing.top, thing.top + thing.size), slice(thing.left, thing.left + thing.size))
    cover = shape_mask(thing.shape, thing.size)
    canvas[box] += cover[..., None] * (body - canvas[box])
    owner[box][cover > 0.5] = index
    ink = digit_ink(thing.digit_row, round(0.56 * thing.size))
    drop = round(0.12 * thing.size) if thing.shape == "triangle" else 0  # its widest part is low
    start = (thing.size - len(ink)) // 2
    canvas_box = canvas[box][start + drop : start + drop + len(ink), start : start + len(ink)]
    canvas_box += ink[..., None] * (ink_colour - canvas_box)


@lru_cache(maxsize=512)
def shape_mask(shape: str, size: int) -> Pixels:
    """Anti-aliased cover of a shape in its box, shape (size, size), values 0 to 1."""
    fine = 4
    grid = (np.arange(size * fine) + 0.5) / (size * fine) * 2 - 1
    inside = _inside(shape, grid[None, :], grid[:, None]).astype(np.float32)
    cover: Pixels = inside.reshape(size, fine, size, fine).mean((1, 3))
    return cover


def _inside(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points of the box [-1, 1]^2 (y downwards) lie inside the shape."""
    rules: dict[str, Callable[[], NDArray[np.bool_]]] = {
        "circle": lambda: x**2 + y**2 <= 0.92,
        "square": lambda: np.maximum(abs(x), abs(y)) <= 0.86,
        "triangle": lambda: (abs(x) <= (y + 0.95) / 1.9) & (y <= 0.92),
        "diamond": lambda: abs(x) + abs(y) <= 1.0,
        "cross": lambda: (np.minimum(abs(x), abs(y)) <= 0.42) & (abs(x) + abs(y) < 3),
        "star": lambda: np.hypot(x, y) <= _star_radius(np.arctan2(x, -y)),
    }
    return rules[shape]()


def _star_radius(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Radius of a fat five-pointed star at an angle from its upper point."""
    turn = 2 * np.pi / 5
    from_point = abs((angle + turn / 2) % turn - turn / 2) / (turn / 2)
    radius: NDArray[np.float64] = 1.0 - 0.48 * from_point
    return radius


def _plain(rng: np.random.Generator, side: int) -> Pixels:
    return np.broadcast_to(_grey(rng), (side, side, 3)).astype(np.float32)


def _gradient(rng: np.random.Generator, side: int) -> Pixels:
    ramp = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    start, end = _grey(rng), _grey(rng)
    canvas = np.broadcast_to(start + ramp * (end - start), (side, side, 3))
    return np.array(canvas.transpose(1, 0, 2) if rng.random() < 0.5 else canvas)


def _noise(rng: np.random.Generator, side: int) -> Pixels:
    cells = rng.integers(-38, 39, size=(side // 4, side // 4)).astype(np.float32)
    return _plain(rng, side) + cells.repeat(4, 0).repeat(4, 1)[..., None]


def _clutter(rng: np.random.Generator, side: int) -> Pixels:
    """Grey specks: texture that is no object."""
    canvas = _plain(rng, side)
    for left, top, width, height, shade in rng.integers(
        (0, 0, 3, 3, -60), (side, side, 10, 10, 61), size=(side // 5, 5)
    ).tolist():
        canvas[top : top + height, left : left + width] += shade
    return canvas


def _grey(rng: np.random.Generator) -> Pixels:
    """A muted, nearly grey colour that no object has."""
    shade: Pixels = (rng.integers(60, 140) + rng.integers(-12, 13, size=3)).astype(np.float32)
    return shade


_BACKGROUNDS: tuple[Callable[[np.random.Generator, int], Pixels], ...] = (
    _plain,
    _gradient,
    _noise,
    _clutter,
)
