"""The command line in tests: inside this process, or as a user's own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from typer.testing import CliRunner, Result

from tests import tiny
from vflowopt_search.cli.app import app

ROOT = Path(__file__).parent.parent
PROGRAM = "from vflowopt_search.cli import main; main()"


def run(*arguments: str | Path) -> Result:
    """Run a command here; errors that are not ours come through."""
    return CliRunner().invoke(app, [str(part) for part in arguments], catch_exceptions=False)


def spawn(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Start a command as a process of its own, in the folder `cwd`."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class World(NamedTuple):
    """What a user of the command line has: a checkpoint and samples."""

    model: Path
    samples: Path
    image: Path

    def search(self, output: Path, *more: str | Path) -> list[str | Path]:
        """Arguments of a small search on them."""
        source: list[str | Path] = ["search", self.model, "--calibration", self.samples]
        options = ["--columns", "prompt=question", "--retain", "0.3", "--samples", "6"]
        return [*source, *options, "--output", output, *more]


def make_world(folder: Path) -> World:
    """A tiny random LLaVA checkpoint, and ten noise images with a question each."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(10):
        name = f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / name)
        lines.append(json.dumps({"image": name, "question": f"how many objects is {number} ?"}))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    model = tiny.save_checkpoint(folder / "llava", "llava")
    return World(model, folder / "samples.jsonl", folder / "0.png")
