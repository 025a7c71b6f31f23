"""`search --trials-per-batch` and `--sampler` on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import make_world, run


def test_several_strategies_to_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFLOWOPT_SEARCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "world"
    folder.mkdir()
    world = make_world(folder)
    asked = ["--trials", "4", "--no-held-out", "--trials-per-batch"]
    told = json.loads(run(*world.search(tmp_path / "out", *asked, "3", "--json")).stdout)
    assert told["finished"] and told["trials"]["done"] == 4
    refused = run(*world.search(tmp_path / "out", *asked, "2"))
    assert refused.exit_code == 1
    assert "trials_per_batch 3 but is resumed with trials_per_batch 2" in refused.stderr
    assert run(*world.search(tmp_path / "out", *asked, "0")).exit_code == 2


def test_another_sampler_is_told_and_is_another_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VFLOWOPT_SEARCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "world"
    folder.mkdir()
    world = make_world(folder)
    asked = ["--trials", "2", "--no-held-out", "--json", "--sampler"]
    told = json.loads(run(*world.search(tmp_path / "out", *asked, "random")).stdout)
    assert told["settings"] == {
        "sampler": "random",
        "racing": True,
        "trials_per_batch": 1,
        "workers": 1,
    }
    refused = run(*world.search(tmp_path / "out", *asked, "gp"))
    assert refused.exit_code == 1
    assert "was made with sampler 'random' but is resumed with sampler 'gp'" in refused.stderr
