"""What a user meets before the first command: imports, public names, files in the wheel."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import vflowopt_search

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "optuna", "transformers", "datasets", "plotly", "pandas", "sklearn"}


def loaded_by(statements: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `statements`."""
    script = f"{statements}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return {name.split(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_by("import vflowopt_search; vflowopt_search.__version__")
    assert "vflowopt_search" in loaded
    assert not loaded & (HEAVY | {"typer", "rich", "pydantic"})


def test_a_strategy_is_read_without_torch() -> None:
    loaded = loaded_by("from vflowopt_search import Strategy; Strategy.json_schema()")
    assert "pydantic" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["search", "--help"], ["spaces"]])
def test_light_commands_load_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_by(
        "import sys\n"
        f"sys.argv = ['vflowopt-search', *{arguments!r}]\n"
        "from vflowopt_search.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
    )
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_deploying_loads_neither_the_search_nor_its_pictures() -> None:
    loaded = loaded_by("from vflowopt_search import pruned, prune")
    assert "torch" in loaded
    assert not loaded & {"optuna", "plotly", "datasets", "typer"}


def test_all_names_what_can_be_imported() -> None:
    for name in vflowopt_search.__all__:
        assert getattr(vflowopt_search, name) is not None
    assert vflowopt_search.__all__ == sorted(vflowopt_search.__all__)
    assert dir(vflowopt_search) == sorted(vflowopt_search.__all__)


def test_public_names_are_lazy_and_at_home() -> None:
    names = [name for name in vflowopt_search.__all__ if name != "__version__"]
    assert set(names) == set(vflowopt_search._HOME)
    for name, home in vflowopt_search._HOME.items():
        public: Any = getattr(vflowopt_search, name)
        assert public.__module__ == home  # not where it is merely passed on
        assert public.__doc__


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'prunde'"):
        vflowopt_search.__getattr__("prunde")


def test_version_is_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "vflowopt_search/__init__.py"


def test_folders_that_travel_in_the_wheel_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert set(folders) == {"search_spaces", "studies"}
    for folder, target in folders.items():
        assert list((ROOT / folder).glob("*.yaml")), folder
        assert target == f"vflowopt_search/data/{folder}"


INSTALLED_AS = {"PIL": "pillow", "yaml": "pyyaml"}
OF_LMMS_EVAL = {"lmms_eval", "loguru", "tqdm"}  # its own environment has these
OF_TORCH = {"triton"}  # comes with it where it runs


def test_what_is_imported_is_declared() -> None:
    """Not merely brought along by another package, which may stop to do so."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["video"], *extras["dashboard"]]
    declared = {plain_name(one) for one in wanted}
    imported = {
        name
        for file in sorted((ROOT / "vflowopt_search").rglob("*.py"))
        for name in imports_of(ast.parse(file.read_text()))
    }
    ours = {"vflowopt_search", *sys.stdlib_module_names, *OF_LMMS_EVAL, *OF_TORCH}
    names = {plain_name(INSTALLED_AS.get(name, name)) for name in imported - ours}
    assert names - declared == set()
    pins = {plain_name(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert declared - pins == set()


def imports_of(module: ast.Module) -> set[str]:
    """Top-level names of what a module imports, early or late."""
    nodes = list(ast.walk(module))
    named = [one.name for node in nodes if isinstance(node, ast.Import) for one in node.names]
    named += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom) and not n.level]
    return {name.split(".")[0] for name in named}


def plain_name(requirement: str) -> str:
    """`Foo_Bar>=1` as `foo-bar`."""
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lmms.txt"])
def test_every_constraint_is_one_exact_version(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert "torch==2.13.0" in pins
    for pin in pins:
        assert pin.count("==") == 1, pin
        assert not set(pin) & set("+/@ "), pin


@pytest.mark.parametrize(
    ("given", "count"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_idle_threads_leave_their_cores_to_others(given: dict[str, str], count: str | None) -> None:
    unset = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    script = (
        "import sys; sys.argv = ['vflowopt-search', '--version']\n"
        "from vflowopt_search.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    import os; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**{key: os.environ[key] for key in os.environ.keys() - unset}, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines()[-1] == f"{count} False"
