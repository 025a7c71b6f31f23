"""A tiny model, labelled questions about six images and a strategy: what `evaluate` needs."""

from __future__ import annotations

import json
from pathlib import Path

from tests.command import World, make_world
from vflowopt_search.strategy import Importance, Stage, Strategy

Arguments = list[str | Path]


def labelled_world(folder: Path) -> World:
    """A checkpoint, twelve labelled questions about six images, and a strategy file."""
    made = make_world(folder)
    rows = [
        {
            "id": f"q{n}",
            "image": f"{n % 6}.png",
            "question": f"how many objects is {n} ?",
            "answers": ["red"] * 3 + ["two"],
            "kind": "even" if n % 2 == 0 else "odd",
            "options": ["red", "blue"],
            "letter": n % 2,
        }
        for n in range(12)
    ]
    text = "\n".join(map(json.dumps, rows)) + "\n"
    made.samples.with_name("labelled.jsonl").write_text(text)
    stages = (Stage(layer=0, keep_ratio=0.6), Stage(layer=3, keep_ratio=0.5))
    importance = Importance(vision_layer=1)
    Strategy(name="mine", importance=importance, stages=stages).save(
        made.model.with_name("mine.json")
    )
    return made


def command(world: World, output: Path, *more: str | Path) -> Arguments:
    """Evaluate that strategy on those questions."""
    data: Arguments = ["--data", world.samples.with_name("labelled.jsonl"), "--by", "kind"]
    named: Arguments = ["evaluate", world.model.with_name("mine.json"), "--model", world.model]
    return [*named, *data, "--max-new-tokens", "4", "--output", output, *more]
