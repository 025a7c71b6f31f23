"""The notebook runs from top to bottom on a study, with public names only and no stored output."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.fake_study import fake_run
from vflowopt_search import run_folder

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "inspect_study.ipynb"


def notebook() -> Any:
    return nbformat.reads(NOTEBOOK.read_text("utf-8"), as_version=4)  # type: ignore[no-untyped-call]


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = fake_run(storage=tmp_path / run_folder.JOURNAL, total=12)
    assert outcome.best is not None
    outcome.best.save(tmp_path / run_folder.STRATEGY)
    (tmp_path / run_folder.BASELINES).write_text(json.dumps({"random": 3.0}))
    monkeypatch.setenv("VFLOWOPT_RUN", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    executed = NotebookClient(notebook(), timeout=120).execute(cwd=str(NOTEBOOK.parent))
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("application/vnd.plotly.v1+json") == 5
    assert any("sample evaluations saved" in output.get("text", "") for output in outputs)


def test_outputs_are_stripped_and_names_are_public() -> None:
    cells = notebook().cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)
    tree = ast.parse("\n".join(cell.source for cell in code))
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert not [name for name in names if name.startswith("_")]
