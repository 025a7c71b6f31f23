"""`.ci/run` has chromium or fails: the browser tests are never passed over there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.command import ROOT

NEEDED = ("env", "bash", "dirname", "rm")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A copy of the script on a machine that has a shell and little else."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in NEEDED:
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    program(tmp_path, "make", 'echo "make $1, browser required: ${VFLOWOPT_REQUIRE_BROWSER:-no}"')
    return tmp_path


def program(machine: Path, name: str, script: str) -> None:
    path = machine / "bin" / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def run(machine: Path) -> subprocess.CompletedProcess[str]:
    bash = str(machine / "bin" / "bash")
    environment = {"PATH": str(machine / "bin"), "MACHINE": str(machine)}
    command = [bash, str(machine / ".ci" / "run")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["chromium", "chromium-browser"])
def test_a_browser_that_is_there_is_required(machine: Path, name: str) -> None:
    program(machine, name, "")
    done = run(machine)
    assert done.returncode == 0, done.stderr
    assert "make test, browser required: 1" in done.stdout
    assert "make wheel-check, " in done.stdout


def test_without_root_it_says_what_to_install(machine: Path) -> None:
    program(machine, "id", "echo 1000")
    done = run(machine)
    assert (done.returncode, done.stdout) == (1, "")
    assert "run 'sudo apt-get install chromium', then this again" in done.stderr


def test_as_root_it_installs_one(machine: Path) -> None:
    program(machine, "id", "echo 0")
    made = 'echo "#!/usr/bin/env bash" >$MACHINE/bin/chromium'
    program(machine, "apt-get", f"[ $1 = update ] || {{ {made}; chmod +x $MACHINE/bin/chromium; }}")
    (machine / "bin" / "chmod").symlink_to(str(shutil.which("chmod")))
    done = run(machine)
    assert done.returncode == 0, done.stderr
    assert "make test, browser required: 1" in done.stdout


def test_one_that_cannot_be_installed_fails_the_check(machine: Path) -> None:
    program(machine, "id", "echo 0")
    program(machine, "apt-get", "exit 100")
    done = run(machine)
    assert (done.returncode, done.stdout) == (1, "")
    assert "apt-get could not install it" in done.stderr
