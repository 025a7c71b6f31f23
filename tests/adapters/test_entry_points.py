"""Adapters of other packages: found by entry point, loaded late, refused in one sentence."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.acme import acme_model
from tests.command import ROOT, run
from tests.contract.oracle import generate, masked_logits
from tests.families import tiny
from tests.pruning.oracle import ragged_inputs, strategy_of
from tests.tiny import tiny_model
from vflowopt_search.adapters.llava import LlavaAdapter
from vflowopt_search.adapters.registry import adapter_for, families
from vflowopt_search.deploy import pruned
from vflowopt_search.errors import ModelError
from vflowopt_search.selfcheck.check import check_model
from vflowopt_search.strategy import Recycling

GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a package of one module and one entry point on the path, as pip would."""

    def installed(
        code: str, name: str = "acme_vlm", value: str = "acme_pruning:AcmeAdapter"
    ) -> None:
        (tmp_path / "acme_pruning.py").write_text(code)
        info = tmp_path / "acme_pruning-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-pruning\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[vflowopt_search.adapters]\n{name} = {value}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "acme_pruning", raising=False)

    yield installed
    sys.modules.pop("acme_pruning", None)


def test_the_guide_shows_an_adapter_that_prunes(install: Any) -> None:
    code = block("python")
    assert len(code.splitlines()) < 60
    assert 'acme_vlm = "acme_pruning:AcmeAdapter"' in block("toml")
    install(code)
    model, inputs = acme_model(), ragged_inputs("llava")
    assert type(adapter_for(model)).__name__ == "AcmeAdapter"
    assert check_model(model, tiny("llava").processor()).passed  # type: ignore[misc]
    strategy = strategy_of((0, 0.5), (3, 0.5), recycling=Recycling(cell=2.0))
    with pruned(model, strategy) as applied:
        steps = generate(model, inputs)
    assert applied.last is not None
    assert applied.last.tokens_per_layer[0] == [8] * 3 + [4] * 3
    masked = masked_logits(tiny("llava"), model, inputs, steps.ids, applied.last, strategy)
    assert (steps.logits - masked).abs().max() < 5e-5


def test_its_family_is_listed(install: Any) -> None:
    install(block("python"))
    assert "acme_vlm" in [family.model_type for family in families()]
    told = {record["model_type"]: record for record in json.loads(run("models", "--json").stdout)}
    assert told["acme_vlm"]["positions"] == ["original", "packed"]


def test_nothing_is_imported_for_models_of_ours(install: Any) -> None:
    install("raise SystemExit('imported')", name="llava")
    assert isinstance(adapter_for(tiny_model("llava")), LlavaAdapter)
    assert "acme_pruning" not in sys.modules
    assert [f.model_type for f in families()].count("llava") == 1


BROKEN = {
    "import": ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_t"),
    "syntax": ("class AcmeAdapter(", "SyntaxError"),
    "name": ("class AcmeAdapter(Adapter): ...", "NameError"),
    "key": ("import os; os.environ['NOTHING_OF_THIS_NAME']", "KeyError"),
    "attribute": ("AcmeAdaptor = 1", "AttributeError"),
    "kind": ("AcmeAdapter = dict", "is no subclass of vflowopt_search.adapters.base.Adapter"),
    "family": (
        "from vflowopt_search.adapters.llava import LlavaAdapter as AcmeAdapter",
        "but the `family` of acme_pruning:AcmeAdapter is another",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_package_is_named_in_one_sentence(
    install: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "vflowopt_search")
    code, reason = BROKEN[kind]
    install(code)
    sentence = rf"^the package acme-pruning offers an adapter for acme_vlm.*{re.escape(reason)}"
    with pytest.raises(ModelError, match=sentence) as caught:
        adapter_for(acme_model())
    assert str(caught.value).endswith("repair or uninstall acme-pruning")
    cause = caught.value.__cause__
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [cause] * (
        cause is not None
    )
    [listed] = [family for family in families() if family.model_type == "acme_vlm"]
    assert listed.limits == str(caught.value)
    assert "repair or uninstall" in " ".join(run("models").stdout.split())  # lines may break
