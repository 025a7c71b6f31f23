"""The notebooks run from top to bottom, with public names only and no stored output."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.report.overlays import whole_run

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
    assert "on the others" in ran.text
    assert "259 visual tokens; alive in each layer:" in ran.text
    assert (ran.count(PLOT), ran.count(PICTURE)) == (2, 1)
    assert "received_attention" in ran.tables()


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
    assert "whole model right" in ran.tables() and "pruned model right" in ran.tables()
    assert "visual tokens: 259" in ran.text
    assert "times as fast" in ran.tables()
    assert "the same: True" in ran.text
    assert ran.text.count("alive by layer: [202, 2, 1, 1, 1, 1, 1, 1]") == 3
    assert "28" in ran.text and "search again for this model" in ran.text


def test_there_are_no_other_notebooks() -> None:
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_stripped_and_names_are_public(name: str) -> None:
    cells = code(name)
    assert cells and all(not cell.outputs and cell.execution_count is None for cell in cells)
    tree = ast.parse("\n".join(cell.source for cell in cells))
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in imports for alias in node.names]
    names += [part for node in imports for part in (node.module or "").split(".")]
    assert not [name for name in names if name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_lines_fit_a_page(name: str) -> None:
    for cell in notebook(name).cells:
        assert max(map(len, cell.source.splitlines())) <= 100
    stored = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text("utf-8"))
    assert stored["nbformat"] == 4 and set(stored["metadata"]) == {"kernelspec", "language_info"}
