"""Commands that read and tell; how errors look."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from tests.command import run
from tests.examples import full_strategy
from vflowopt_search import __version__
from vflowopt_search.budget import mean_retained
from vflowopt_search.calibration.images import open_image
from vflowopt_search.cli import doctor
from vflowopt_search.cli.console import table
from vflowopt_search.strategy import Budget, Importance, Recycling, Stage, Strategy

COMMANDS = ["search", "show", "apply", "report", "evaluate", "validate", "bench", "dashboard"]
COMMANDS += ["models", "spaces", "doctor", "push", "pull"]


def test_version() -> None:
    assert run("--version").stdout == f"vflowopt-search {__version__}\n"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_wraps_by_paragraph(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = run(*command, "--help").stdout.partition("╭")[0]
    paragraphs = [part.strip().splitlines() for part in re.split(r"\n\s*\n", text)]
    for lines in paragraphs:
        for line, following in pairwise(map(str.rstrip, lines)):
            has_room = len(line) + len(" " + following.split()[0]) < 78
            assert line.endswith("\\") or not has_room, lines


def test_help_names_every_command() -> None:
    text = run("--help").stdout
    assert [command for command in COMMANDS if command not in text] == []


@pytest.mark.parametrize(
    "arguments",
    [["serach"], ["show"], ["search", "--trials", "0"], ["search", "--dtype", "int4"]],
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert result.stdout == ""


def test_an_error_of_ours_is_one_sentence_on_stderr(tmp_path: Path) -> None:
    result = run("show", tmp_path / "none.json")
    assert result.exit_code == 1
    assert result.stdout == ""
    expected = "none.json cannot be read (No such file or directory); check the path\n"
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith(expected)
    assert result.stderr.count("\n") == 1


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> Strategy:
        raise ZeroDivisionError

    monkeypatch.setattr(Strategy, "load", broken)
    with pytest.raises(ZeroDivisionError):
        run("show", "any.json")


def test_show_tells_stages_and_origin(tmp_path: Path) -> None:
    strategy = full_strategy()
    strategy.save(tmp_path / "strategy.json")
    text = run("show", tmp_path / "strategy.json").stdout
    assert "full" in text
    assert "toy, 8 decoder layers of width 128, 6 vision layers" in text
    assert "vision layer 4, context threshold 12.5, entropy weight 0.31" in text
    assert "grid cells of 4 x 4 tokens" in text
    assert "10.0% of the visual tokens claimed, but 13.0% by its stages" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["0", "to", "2", "0.16", "16.0%", "received_attention"] in rows
    assert ["3", "to", "7", "0.7", "11.2%", "text_attention"] in rows
    assert strategy.provenance is not None
    assert f"study {strategy.provenance.study}, trial {strategy.provenance.trial}" in text


def test_show_takes_the_folder_of_a_search_or_of_a_checkpoint(tmp_path: Path) -> None:
    full_strategy().save(tmp_path / "strategy.json")
    whole = run("show", tmp_path, "--json").stdout
    assert Strategy.model_validate(json.loads(whole)["strategy"]) == full_strategy()
    (tmp_path / "strategy.json").rename(tmp_path / "vflowopt_strategy.json")
    assert run("show", tmp_path, "--json").stdout == whole
    (tmp_path / "vflowopt_strategy.json").unlink()
    told = run("show", tmp_path).stderr
    assert f"{tmp_path} holds no vflowopt_strategy.json and no strategy.json; save one" in told


def test_show_without_a_model(tmp_path: Path) -> None:
    stages = (Stage(layer=2, keep_ratio=0.5),)
    Strategy(name="s", importance=Importance(score="random"), stages=stages).save(tmp_path / "s")
    text = run("show", tmp_path / "s").stdout
    rows = [line.split() for line in text.splitlines()]
    assert ["0", "to", "1", "-", "100.0%", "-"] in rows
    assert ["2", "and", "later", "0.5", "50.0%", "random"] in rows
    assert "retention ratio" not in text


def test_show_rounds_for_people_and_the_file_does_not(tmp_path: Path) -> None:
    importance = Importance(
        vision_layer=4,
        context_threshold=12.408511,
        entropy_weight=0.340226,
        pixels=full_strategy().importance.pixels,
    )
    stages = (Stage(layer=0, keep_ratio=0.746742), Stage(layer=1, keep_ratio=0.0101832))
    kept = mean_retained(stages, 8)
    update = {
        "importance": importance,
        "stages": stages,
        "recycling": Recycling(cell=12.222222),
        "budget": Budget(mean_retained=kept + 1e-6),
    }
    strategy = full_strategy().model_copy(update=update)
    strategy.save(tmp_path / "s")
    text = run("show", tmp_path / "s").stdout
    assert "context threshold 12.4, entropy weight 0.34 " in text
    assert "grid cells of 12.2 x 12.2 tokens " in text
    assert f"retention ratio {kept:.1%} of the visual tokens, mean over the decoder layers" in (
        " ".join(text.split())
    )
    rows = [line.split() for line in text.splitlines()]
    assert ["0", "0.747", "74.7%", "received_attention"] in rows
    assert ["1", "to", "7", "0.0102", "0.76%", "received_attention"] in rows
    told = json.loads(run("show", tmp_path / "s", "--json").stdout)["strategy"]
    assert told["recycling"]["cell"] == 12.222222


def test_show_json_has_the_file_and_what_follows(tmp_path: Path) -> None:
    full_strategy().save(tmp_path / "strategy.json")
    told = json.loads(run("show", tmp_path / "strategy.json", "--json").stdout)
    assert Strategy.model_validate(told["strategy"]) == full_strategy()
    assert told["derived"]["alive_per_layer"] == pytest.approx([0.16] * 3 + [0.112] * 5)
    assert told["derived"]["mean_retained"] == pytest.approx((3 * 0.16 + 5 * 0.112) / 8)


def test_spaces_lists_the_shipped_ones() -> None:
    text = run("spaces").stdout
    told = json.loads(run("spaces", "--json").stdout)
    names = {"vflowopt", "vflowopt-published", "keep-ratios-only", "by-structure"}
    assert names <= {record["name"] for record in told}
    assert all(name in text for name in names)


def test_doctor_tells_versions_and_devices() -> None:
    findings = {f["what"]: f for f in json.loads(run("doctor", "--json").stdout)}
    assert findings["vflowopt-search"]["found"] == __version__
    assert findings["torch"]["usable"]
    assert "threads" in findings["device cpu"]["found"]
    assert "torchvision" in run("doctor").stdout


def test_doctor_fails_when_something_needed_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "optuna" else "1.0")
    result = run("doctor")
    assert result.exit_code == 1
    assert "needed; install vflowopt-search again" in result.stdout


def test_doctor_accepts_what_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_shipped", list)
    monkeypatch.setattr(doctor, "_version", lambda n: None if n == "torchvision" else "1.0")
    assert run("doctor").exit_code == 0


def test_columns_of_numbers_are_set_to_the_right() -> None:
    columns = table(("a", "b"), [("x", "1.5%"), ("y", "-")]).columns
    assert [column.justify for column in columns] == ["left", "right"]


def test_a_photo_is_turned_upright_as_in_calibration(tmp_path: Path) -> None:
    photo = Image.new("RGB", (40, 20), "red")
    exif = photo.getexif()
    exif[0x0112] = 6  # orientation: turn by a quarter
    photo.save(tmp_path / "photo.jpg", exif=exif)
    assert open_image(tmp_path / "photo.jpg").size == (20, 40)
