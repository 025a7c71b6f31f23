"""`doctor`: what this machine can do, and whether a model is pruned correctly on it."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vflowopt_search import __version__
from vflowopt_search.cli.console import print_json, quiet_progress_bars, stdout, table
from vflowopt_search.cli.options import Device, Dtype, DtypeName, Json, RandomInit, TrustRemoteCode
from vflowopt_search.errors import ModelError, ProcessorNeededError
from vflowopt_search.model_source import ModelSource, load_model, load_processor

if TYPE_CHECKING:
    from vflowopt_search.selfcheck.report import Report

PACKAGE = "vflowopt-search"
_TESTBED = "called `testbed`, as in `vflowopt-search search testbed`"
_OPTIONAL = {
    "torchvision": "faster image processors, and video; images work without it",
    "av": "video files; pip installs it with the extra `video`",
}


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    what: str
    found: str
    usable: bool
    note: str = ""


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(help="Check pruning on this model: hub name, folder, or `testbed`."),
    ] = None,
    random_init: RandomInit = None,
    device: Device = "auto",
    dtype: Dtype = DtypeName.auto,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Check this installation or, given a model, whether it is pruned correctly; exits 1 if not.

    Example: vflowopt-search doctor

    Example: vflowopt-search doctor llava-hf/llava-1.5-7b-hf
    """
    if model is None and random_init is None:
        _diagnose_machine(as_json)
        return
    source = ModelSource(model, device, dtype.value, trust_remote_code, random_init)
    quiet_progress_bars()
    report, note = examined(source)
    if as_json:
        print_json({"model": source.name, "note": note, **report.to_plain()})
    else:
        _print_report(source.name, report, note)
    if not report.passed:
        raise typer.Exit(1)


def examined(source: ModelSource) -> tuple[Report, str]:
    """The self-check of a model, and why it went without a processor if it did.

    Raises:
        ModelError: the model cannot be loaded, nobody serves it, or nothing can be asked of it.
    """
    from vflowopt_search.selfcheck.check import check_model

    model, absent = load_model(source), ""
    processor: Any = None
    try:
        processor = load_processor(source)
    except ModelError as error:
        absent = str(error)
    try:
        return check_model(model, processor), f"no processor: {absent}" if absent else ""
    except ProcessorNeededError as error:
        raise ModelError(
            f"a {model.config.model_type} model cannot be checked without its processor, and "
            f"{absent}"
        ) from error


def _print_report(name: str, report: Report, note: str) -> None:
    console = stdout()
    heading = f"{name} ({report.model_type}) on {report.device}, {report.dtype}"
    console.print(heading, soft_wrap=True, markup=False)
    about = f"served by {report.adapter}, asked with {report.inputs}"
    console.print(about, soft_wrap=True)
    if note:
        console.print(note, soft_wrap=True)
    rows = [
        (check.name, f"{check.figure:.2g}", f"{check.limit:.2g}", "yes" if check.passed else "NO")
        for check in report.checks
    ]
    console.print(table(("check", "figure", "limit", "ok"), rows))
    console.print(_verdict(report), soft_wrap=True)


def _verdict(report: Report) -> str:
    total = len(report.checks)
    if report.passed:
        return f"this model is pruned correctly here: all {total} checks passed"
    failed = sum(not check.passed for check in report.checks)
    return (
        f"this model would be pruned wrongly here: {failed} of {total} checks failed; try another "
        f"version of transformers"
    )


def _diagnose_machine(as_json: bool) -> None:
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
        Finding(PACKAGE, __version__, True),
        Finding("python", platform.python_version(), True, system),
    ]
    for name in required_packages():
        found = _version(name)
        note = "" if found else "needed; install vflowopt-search again"
        findings.append(Finding(name, found or "absent", bool(found), note))
    for name, note in _OPTIONAL.items():
        found = _version(name)
        findings.append(Finding(name, found or "absent", bool(found), f"optional: {note}"))
    return findings


def required_packages() -> list[str]:
    """What this package's own metadata says that it needs, extras left out."""
    try:
        lines = requires(PACKAGE) or []
    except PackageNotFoundError:  # run from a source tree that was never installed
        return []
    needed = [line for line in lines if "extra ==" not in line]
    return [name[0] for line in needed if (name := re.match(r"[\w.-]+", line))]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[Finding]:
    if not _version("torch"):
        return []
    import torch

    from vflowopt_search.ops.dispatch import why_no_kernels

    findings = [Finding("device cpu", f"{torch.get_num_threads()} threads", True)]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
        reason = why_no_kernels(torch.device("cuda", index))
        note = f"works, but without the kernels: {reason}" if reason else ""
        findings.append(Finding(f"device cuda:{index}", found, True, note))
    return findings


def _shipped() -> list[Finding]:
    from vflowopt_search.errors import VFlowOptError
    from vflowopt_search.search_space import list_spaces
    from vflowopt_search.testbed import WEIGHTS_FOLDER
    from vflowopt_search.testbed.integrity import check_weights

    findings = []
    try:
        check_weights(WEIGHTS_FOLDER)
        findings.append(Finding("bundled model", "intact", True, _TESTBED))
    except VFlowOptError as error:
        findings.append(Finding("bundled model", "damaged", False, str(error)))
    try:
        found = ", ".join(name for name, _ in list_spaces())
        findings.append(Finding("search spaces", found, True))
    except VFlowOptError as error:
        findings.append(Finding("search spaces", "damaged", False, str(error)))
    return findings
