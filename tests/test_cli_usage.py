"""What is typed wrongly is one clear sentence that names the option; help tells every default."""

from __future__ import annotations

import re
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import Result

from tests.command import run
from vflowopt_search import run_folder
from vflowopt_search.cli.app import app
from vflowopt_search.cli.options import MetricName, ScoreName
from vflowopt_search.resources import studies_folder
from vflowopt_search.strategy import Strategy

PROGRAM: Any = typer.main.get_command(app)
COMMANDS: list[str] = sorted(PROGRAM.commands)
LEAKS = ("Value error", "Input should", "pydantic", "StudyRecipe", "unable to parse", "Traceback")
DEFAULT = re.compile(r"Default( for `testbed`| without a MODEL)?: |required without|unless")
"""How a help text tells what is taken when an option is not typed."""


def valued(command: str) -> list[Any]:
    """The options of a command that take a value."""
    params = PROGRAM.commands[command].params
    return [p for p in params if p.param_type_name == "option" and not p.is_flag]


def named(command: str) -> list[str]:
    """As many arguments as a command wants."""
    params = PROGRAM.commands[command].params
    return [p.name for p in params if p.param_type_name == "argument" and p.required]


def said(result: Result) -> str:
    """What stderr says in its box, as one line."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).split())


EVERY_OPTION = [(name, option.opts[0]) for name in COMMANDS for option in valued(name)]


@pytest.mark.parametrize(("command", "option"), EVERY_OPTION)
def test_no_option_takes_an_empty_value(
    command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for typed in ([option, ""], [f"{option}="], [option, "  "]):
        result = run(command, *named(command), *typed)
        assert result.exit_code == 2
        told = f"Invalid value for {option}: it is empty; give it a value, or leave it out"
        assert told in said(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [name for name in COMMANDS if named(name)])
def test_no_argument_may_be_empty(command: str) -> None:
    result = run(command, *["" for _ in named(command)], "--json")
    assert result.exit_code == 2
    assert "Invalid value for an argument: it is empty" in said(result)


def test_after_a_flag_an_empty_word_is_an_argument() -> None:
    assert "Invalid value for an argument: it is empty" in said(run("search", "--json", ""))


def test_a_value_may_hold_an_equals_sign() -> None:
    told = said(run("search", "--columns", "prompt=", "--trials", "0"))
    assert "'--trials'" in told and "empty" not in told


def kinds(command: str) -> dict[str, list[Any]]:
    """By parameter, the types that its annotation allows."""
    (function,) = (
        one.callback
        for one in app.registered_commands
        if one.callback is not None and one.callback.__name__ == command
    )
    hints = get_type_hints(function)
    return {name: list(get_args(hint)) or [hint] for name, hint in hints.items()}


def wrong_values() -> list[tuple[str, str, str]]:
    """A wrong word for every option that takes a number or one of several names."""
    found = []
    for command in COMMANDS:
        for option in valued(command):
            first = kinds(command)[option.name][0]
            if issubclass(first, int | float | StrEnum):
                found.append((command, option.opts[0], "typo"))
            if getattr(option, "min", None) is not None:
                found.append((command, option.opts[0], str(option.min - 1)))
    return found


def test_many_options_have_wrong_values() -> None:
    assert len(wrong_values()) > 50


@pytest.mark.parametrize(("command", "option", "value"), wrong_values())
def test_a_wrong_value_is_told_with_its_rule_and_the_way_out(
    command: str, option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(command, *named(command), option, value)
    assert result.exit_code == 2
    told = said(result)
    assert f"Invalid value for '{option}': '{value}' is " in told
    assert "; give " in told
    assert [leak for leak in LEAKS if leak in told] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["search", "--retain", "2"], "--retain': 2 is no share of the visual tokens; give a numb"),
        (["search", "--retain", "0"], "--retain': 0 is no share of the visual tokens"),
        (
            ["search", "--retain", "1"],
            "--retain': 1 keeps everything: nothing to search; give a sh",
        ),
        (["search", "--retain", "nan"], "--retain': nan is no share"),
        (["evaluate", "baseline:random", "--retain", "1.5"], "--retain': 1.5 is no share"),
        (["search", "--metric", "Flow"], "'Flow' is not one of 'last_token_cosine', 'flow', 'kl'"),
        (["search", "--trials", "0"], "--trials': '0' is too low; give 1 or more"),
        (["dashboard", "run", "--port", "70000"], "'70000' is too high; give 65535 or less"),
        (["search", "--trials", "1.5"], "'1.5' is not a whole number; give one, as 8"),
        (["search", "--cache-gb", "0"], "--cache-gb': 0 is not a number above 0; give one"),
        (["search", "--cache-gb", "inf"], "--cache-gb': inf is not a number above 0"),
        (["validate", "run", "--fps", "-1"], "--fps': -1 is not a number above 0"),
        (["doctor", "--device", "tpu"], "'tpu' is no device that models run on here; give auto"),
        (["search", "--device", "cuda:7x"], "'cuda:7x' is no device"),
        (["apply", "a", "--device", "mps", "--model", "m", "--prompt", "p"], "'mps' is no device"),
        (["search", "--storage", "nope"], "'nope' is no database URL; give one, as sqlite:///"),
        (["report", "run", "--storage", "nope"], "'nope' is no database URL"),
        (["report", "run", "--prompt", "x"], "--prompt: samples are read for overlays only; name"),
        (["report", "run", "--columns", "x"], "--columns: 'x' is not FIELD=COLUMN"),
        (
            ["evaluate", "a", "--model", "testbed", "--questions", "2", "--samples", "2"],
            "--samples: it is the old name of --questions; give one of the two",
        ),
        (["search", "mine"], "--calibration: a model of your own needs samples: a dataset"),
    ],
)
def test_wrong_usage_names_the_option_and_makes_nothing(
    typed: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*typed)
    assert result.exit_code == 2
    assert sentence in said(result)
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["search", "--output", "file/run"], "--output is file/run but "),
        (["search", "--cache", "file", "--output", "new"], "file is a file; name a folder"),
        (["search", "--output", "long" * 75], ", which cannot be looked up (File name too long)"),
        (["search", "--cache", "loop/cache", "--output", "new"], "up (Too many levels of symboli"),
        (["report", "no", "--output", "long" * 75], ", which cannot be looked up (File name too"),
        (["search", "--output", "new.json"], "new.json, which looks like a file, but several go"),
        (["search", "--space", "no", "--output", "new/run"], "'no' is neither a shipped name"),
        (["search", "--fps", "2", "--output", "new"], "--fps describes data of your own, but the"),
        (["search", "--strict", "--fps", "2", "--output", "new"], "error: --fps describes data"),
        (
            ["evaluate", "baseline:random", "--retain", "1", "--model", "testbed", "--fps", "2"],
            "error: --fps describes data of your own, but the questions are the bundled ones",
        ),
        (
            ["search", "--video-column", "a", "--split", "b", "--output", "new"],
            "--split, --video-column describe data of your own, but the calibration samples are",
        ),
        (["search", "m/m", "--calibration", "no.json", "--output", "new"], "no.json does not exis"),
        (["search", "--study", "bad.yaml"], "found '<stream end>', line 1, column 5); correct the"),
        (["report", "no"], "no has neither study.journal nor trials.parquet; give the"),
        (["report", "no", "--output", "."], "--output is ., which is a folder; name a file in it"),
        (["report", "no", "--output", "no/a.html"], "but there is no folder "),
        (["pull", "me/x", "--output", "."], "which is a folder; name a file in it"),
        (["validate", "no", "--output", "new"], "no has neither study.journal nor trials.parque"),
        (["evaluate", "no.json", "--output", "new"], "no.json cannot be read (No such file"),
        (["bench", "no.json", "--model", "testbed", "--output", "new/a"], "but there is no folder"),
        (["bench", "no.json", "--model", "testbed"], "no.json cannot be read (No such file"),
    ],
)
def test_a_refusal_is_one_sentence_and_leaves_nothing_behind(
    typed: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "loop").symlink_to("loop")
    result = run(*typed)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and sentence in last
    assert result.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} == {"file", "bad.yaml", "loop"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command: str) -> None:
    assert "Example: vflowopt-search" in run(command, "--help").stdout


def examples(command: str) -> list[str]:
    """The examples in a command's help, each as it is copied from a terminal."""
    lines = [line.rstrip() for line in run(command, "--help").stdout.splitlines()]
    found = []
    for number, line in enumerate(lines):
        if line.startswith(" Example: "):
            end = lines.index("", number)
            found.append("\n".join([line.removeprefix(" Example: "), *lines[number + 1 : end]]))
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_is_one_command_when_it_is_pasted(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert examples(command)
    for example in examples(command):
        *broken, _ = example.split("\n")
        assert all(line.endswith("\\") for line in broken), example
        program, name, *arguments = shlex.split(example)
        assert program == "vflowopt-search"
        PROGRAM.commands[name].make_context(name, arguments)  # or UsageError


@pytest.mark.parametrize(("command", "option"), EVERY_OPTION)
def test_help_tells_the_default_of_every_option(command: str, option: str) -> None:
    (found,) = (p for p in valued(command) if p.opts[0] == option)
    assert found.required or found.default is not None or DEFAULT.search(found.help), found.help


@pytest.mark.parametrize("command", ["evaluate", "validate"])
def test_the_number_of_questions_has_one_name(command: str) -> None:
    (found,) = (one for one in valued(command) if one.opts[0] == "--questions")
    assert found.help.startswith("Number of labelled samples")
    old = [one.hidden for one in valued("evaluate") if one.opts[0] == "--samples"]
    assert old == [True] and "--samples" not in run("evaluate", "--help").stdout


def test_the_old_name_of_questions_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Any] = []
    monkeypatch.setattr("vflowopt_search.cli.evaluate.run", lambda job, as_json: jobs.append(job))
    for option in ("--questions", "--samples"):
        run("evaluate", "baseline:random", "--retain", "1", "--model", "testbed", option, "7")
    assert [job.data.samples for job in jobs] == [7, 7]


@pytest.mark.parametrize("command", ["search", "evaluate", "validate"])
def test_how_data_is_read_stands_in_its_panel(command: str) -> None:
    panels = {p.opts[0]: p.rich_help_panel for p in valued(command)}
    assert panels["--frames"] == panels["--fps"] == panels["--split"] is not None


@pytest.mark.parametrize(
    ("command", "names"), [("search", MetricName), ("evaluate", ScoreName), ("validate", ScoreName)]
)
def test_help_names_every_metric(command: str, names: type[MetricName | ScoreName]) -> None:
    text = " ".join(run(command, "--help").stdout.replace("│", " ").split())
    assert ", ".join(name.value for name in names) in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_whole_on_a_narrow_terminal(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert "…" not in run(command, "--help").stdout


def test_a_strategy_of_random_weights_needs_another_model_to_answer(tmp_path: Path) -> None:
    shipped = Strategy.load(studies_folder() / "quickstart" / run_folder.STRATEGY)
    assert shipped.model is not None
    identity = shipped.model.model_copy(update={"name": "random config.json"})
    shipped.model_copy(update={"model": identity}).save(tmp_path / "strategy.json")
    result = run("evaluate", tmp_path / "strategy.json", "--output", tmp_path)
    assert result.exit_code == 2
    told = " ".join(result.stderr.replace("│", " ").split())
    assert "the strategy was found on random config.json, which has no weights to answer" in told
