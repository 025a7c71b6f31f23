"""Another job for a study is refused before its model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.command import World, run
from vflowopt_search.cli import preparation

TRIALS = 1


@pytest.fixture(scope="module")
def searched(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished search."""
    output = tmp_path_factory.mktemp("runs") / "mine"
    more = ("--trials", str(TRIALS), "--no-held-out", "--no-self-check")
    assert run(*world.search(output, *more)).exit_code == 0
    return output


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--retain", "0.4"], "retain 0.3 but is resumed with retain 0.4"),
        (["--seed", "1"], "seed 0 but is resumed with seed 1"),
        (["--metric", "kl"], "metric 'last_token_cosine' but is resumed with metric 'kl'"),
        (["--sampler", "gp"], "sampler 'tpe' but is resumed with sampler 'gp'"),
        (["--no-racing"], "racing True but is resumed with racing False"),
        (["--trials-per-batch", "2"], "trials_per_batch 1 but is resumed with trials_per_batch 2"),
        (["--space", "keep-ratios-only"], "space_sha256 '"),
        (["--samples", "5"], "samples 6 but is resumed with samples 5"),
        (["--samples", "10"], "samples 6 but is resumed with samples 10"),
        (["--calibration", "other.jsonl"], "calibration '"),
        (
            ["--seed", "1", "--retain", "0.4", "--metric", "kl"],
            "metric 'last_token_cosine', retain 0.3, seed 0 but is resumed with "
            "metric 'kl', retain 0.4, seed 1; give the same, or another output folder",
        ),
    ],
)
def test_other_settings_are_refused_before_the_model_is_loaded(
    searched: Path, world: World, monkeypatch: pytest.MonkeyPatch, typed: list[str], said: str
) -> None:
    def loaded(*args: Any) -> None:
        raise AssertionError("nothing of this needs a model")

    lines = world.samples.read_text().replace("many", "few").splitlines()
    world.samples.with_name("other.jsonl").write_text("\n".join(lines) + "\n")
    typed = [str(world.samples.with_name(one)) if one == "other.jsonl" else one for one in typed]
    monkeypatch.setattr(preparation, "load", loaded)
    before = {file: file.read_bytes() for file in searched.iterdir() if file.is_file()}
    result = run(*world.search(searched, "--trials", str(TRIALS), *typed))
    assert result.exit_code == 1
    assert f"study 'mine' was made with {said}" in result.stderr.splitlines()[-1]
    assert {file: file.read_bytes() for file in searched.iterdir() if file.is_file()} == before


def test_another_model_is_refused_before_it_is_loaded(
    searched: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "load", lambda source: pytest.fail("it was loaded"))
    command = world.search(searched, "--trials", str(TRIALS))
    result = run(*["elsewhere" if one == world.model else one for one in command])
    assert result.exit_code == 1
    assert f"made with model '{world.model}' but is resumed with model 'elsewhere'" in result.stderr
