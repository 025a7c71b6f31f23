"""`doctor`: what this machine has, and what can be done with it."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

import typer

from vflowopt_search import __version__
from vflowopt_search.cli.console import print_json, stdout, table
from vflowopt_search.cli.options import Json

_REQUIRED = ("torch", "transformers", "optuna", "datasets", "pydantic", "pyarrow", "plotly")
_OPTIONAL = {
    "torchvision": "faster image processors, and video; images work without it",
}


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    what: str
    found: str
    usable: bool
    note: str = ""


def doctor(
    as_json: Json = False,
) -> None:
    """Tell versions, devices and what is usable here; exit code 1 when something needed lacks.

    Example: vflowopt-search doctor
    """
    findings = [*_packages(), *_devices(), *_shipped()]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = [(f.what, f.found, "yes" if f.usable else "no", f.note) for f in findings]
        stdout().print(table(("", "found", "usable", ""), rows))
    if any(not finding.usable and finding.what not in _OPTIONAL for finding in findings):
        raise typer.Exit(1)


def _packages() -> list[Finding]:
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    findings = [
        Finding("vflowopt-search", __version__, True),
        Finding("python", platform.python_version(), True, system),
    ]
    for name in _REQUIRED:
        found = _version(name)
        note = "" if found else "needed; install vflowopt-search again"
        findings.append(Finding(name, found or "absent", bool(found), note))
    for name, note in _OPTIONAL.items():
        found = _version(name)
        findings.append(Finding(name, found or "absent", bool(found), f"optional: {note}"))
    return findings


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[Finding]:
    if not _version("torch"):
        return []
    import torch

    findings = [Finding("device cpu", f"{torch.get_num_threads()} threads", True)]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
        findings.append(Finding(f"device cuda:{index}", found, True))
    return findings


def _shipped() -> list[Finding]:
    from vflowopt_search.errors import VFlowOptError
    from vflowopt_search.search_space import list_spaces
    from vflowopt_search.testbed import WEIGHTS_FOLDER
    from vflowopt_search.testbed.integrity import check_weights

    findings = []
    try:
        check_weights(WEIGHTS_FOLDER)
        findings.append(Finding("shipped model", "intact", True, "--model testbed"))
    except VFlowOptError as error:
        findings.append(Finding("shipped model", "damaged", False, str(error)))
    try:
        found = ", ".join(name for name, _ in list_spaces())
        findings.append(Finding("search spaces", found, True))
    except VFlowOptError as error:
        findings.append(Finding("search spaces", "damaged", False, str(error)))
    return findings
