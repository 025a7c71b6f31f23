"""The notebooks run from top to bottom, with public names only and no stored output."""

from __future__ import annotations

import ast
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import vflowopt_search
from tests.report.overlays import whole_run
from vflowopt_search import PUBLIC_MODULES

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAMES = ("01_find_a_strategy", "02_inspect_study", "03_compare_strategies", "04_deploy")
PLOT, PICTURE = "application/vnd.plotly.v1+json", "image/png"


def notebook(name: str) -> Any:
    text = (NOTEBOOKS / f"{name}.ipynb").read_text("utf-8")
    return nbformat.reads(text, as_version=4)  # type: ignore[no-untyped-call]


def code(name: str) -> list[Any]:
    return [cell for cell in notebook(name).cells if cell.cell_type == "code"]


class Ran:
    """What an executed notebook shows."""

    def __init__(self, name: str) -> None:
        client = NotebookClient(notebook(name), timeout=240)
        executed = client.execute(cwd=str(NOTEBOOKS))
        self.outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
        self.text = "".join(output.get("text", "") for output in self.outputs)
        assert "Loading weights" not in self.text
        # an exported page draws figures from their HTML, JupyterLab from their data
        drawn = [output for output in self.outputs if "plotly-graph-div" in self._page(output)]
        assert len(drawn) == self.count(PLOT)
        # plotly's buttons would lie over bars and points
        bare = [o["data"][PLOT]["config"] for o in self.outputs if PLOT in o.get("data", {})]
        assert all(config["displayModeBar"] is False for config in bare)
        assert all('"displayModeBar": false' in self._page(output) for output in drawn)

    def count(self, kind: str) -> int:
        return sum(kind in output.get("data", {}) for output in self.outputs)

    def tables(self) -> str:
        """What tables say, without those that plotly brings."""
        return "".join(map(self._page, (o for o in self.outputs if PLOT not in o.get("data", {}))))

    @staticmethod
    def _page(output: Any) -> str:
        return str(output.get("data", {}).get("text/html", ""))


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few trials and samples, and no writing in the home folder."""
    monkeypatch.setenv("VFLOWOPT_TRIALS", "3")
    monkeypatch.setenv("VFLOWOPT_SAMPLES", "6")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_a_strategy_is_found_saved_and_applied() -> None:
    ran = Ran("01_find_a_strategy")
    assert "6 samples, fingerprint" in ran.text
    assert "held out" in ran.text
    assert "259 visual tokens; kept in each layer:" in ran.text
    assert (ran.count(PLOT), ran.count(PICTURE)) == (2, 1)
    assert "received_attention" in ran.tables()
    assert "...</td>" not in ran.tables()  # no cell is cut


def test_a_study_is_looked_at_from_all_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = whole_run(tmp_path / "run", total=20)  # two trials measured wholly
    monkeypatch.setenv("VFLOWOPT_RUN", str(run.folder))
    ran = Ran("02_inspect_study")
    assert (ran.count(PLOT), ran.count(PICTURE)) == (8, 1)
    assert "sample evaluations saved" in ran.text
    assert "rank correlation" in ran.text
    assert "the hardest tenth has" in ran.text
    assert "Why?" in ran.tables()
    assert "report.html" in ran.text


def test_budgets_and_baselines_are_compared() -> None:
    ran = Ran("03_compare_strategies")
    assert (ran.count(PLOT), ran.count(PICTURE)) == (2, 2)
    assert all(name in ran.tables() for name in ("found", "random", "uniform", "attention", "40%"))
    assert "budgets.html" in ran.text


def test_a_strategy_is_deployed_and_measured() -> None:
    ran = Ran("04_deploy")
    assert "unpruned model right" in ran.tables() and "pruned model right" in ran.tables()
    assert "visual tokens: 259" in ran.text
    assert "speed-up" in ran.tables()
    assert "the same: True" in ran.text
    assert ran.text.count("visual tokens kept by layer: [202, 2, 1, 1, 1, 1, 1, 1]") == 3
    assert "28" in ran.text and "search again for this model" in ran.text


def test_there_are_no_other_notebooks() -> None:
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_stripped_and_names_are_public(name: str) -> None:
    cells = code(name)
    assert cells and all(not cell.outputs and cell.execution_count is None for cell in cells)
    tree = ast.parse("\n".join(cell.source for cell in cells))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [(n.module or "", a.name) for n in imports for a in n.names if _is_ours(n.module)]
    assert ours and [each for each in ours if not is_public(*each)] == []
    plain = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert not any(map(_is_ours, plain))
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert not [name for name in names if name.startswith("_")]


def _is_ours(module: str | None) -> bool:
    return (module or "").split(".")[0] == "vflowopt_search"


def is_public(module: str, name: str) -> bool:
    """Whether `from module import name` is promised to go on working."""
    if f"{module}.{name}" in PUBLIC_MODULES:
        return True
    listed = module in PUBLIC_MODULES and not name.startswith("_")
    return listed or (module == "vflowopt_search" and name in vflowopt_search.__all__)


def test_what_is_public_is_listed_and_there() -> None:
    assert is_public("vflowopt_search", "search") and is_public("vflowopt_search.report", "frames")
    assert not is_public("vflowopt_search.report.frames", "_row")
    assert not is_public("vflowopt_search.report", "gaps")
    assert not is_public("vflowopt_search.study", "search")
    assert list(PUBLIC_MODULES) == sorted(PUBLIC_MODULES)
    for module in PUBLIC_MODULES:
        assert import_module(module).__doc__


@pytest.mark.parametrize("name", NAMES)
def test_lines_fit_a_page(name: str) -> None:
    for cell in notebook(name).cells:
        assert max(map(len, cell.source.splitlines())) <= 100
    stored = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text("utf-8"))
    assert stored["nbformat"] == 4 and set(stored["metadata"]) == {"kernelspec", "language_info"}
