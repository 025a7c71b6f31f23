"""`search --workers` on a tiny random model: one study, an exact total, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
import torch
import typer

from tests.command import ROOT, World, run
from tests.fake_study import fake_run
from tests.other_processes import wait_until
from vflowopt_search import run_folder, trials
from vflowopt_search.cli.command_line import command_of
from vflowopt_search.cli.job import Job, parse_devices
from vflowopt_search.cli.running import Latest, _tasks, run_all
from vflowopt_search.cli.worker import Silent
from vflowopt_search.outcome import TrialReport
from vflowopt_search.storage import read_journal
from vflowopt_search.workers import THREADS, Workers

# The first worker is slow here, so that the second, which has to load first, gets its share.
SLOW = """
import time
from vflowopt_search.objective import Objective
measure = Objective.measure_many
def slowly(*arguments):
    time.sleep(0.5)
    return measure(*arguments)
Objective.measure_many = slowly
from vflowopt_search.cli import main
main()
"""
TOTAL = 60


def started(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """A search of two workers, with a group of its own as at a terminal."""
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, arguments), "--workers", "2"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def trials_of(output: Path) -> list[optuna.trial.FrozenTrial]:
    try:
        storage = read_journal(output / run_folder.JOURNAL)
        return optuna.load_study(study_name=output.name, storage=storage).trials
    except (KeyError, FileNotFoundError):
        return []


def running_of(output: Path, pid: int) -> list[int]:
    """The trials that a process measures now."""
    owned = [one for one in trials_of(output) if f":{pid}:" in one.user_attrs.get(trials.OWNER, "")]
    return [one.number for one in owned if trials.outcome_of(one) == "running"]


def child_of(process: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(wait_until(lambda: children.read_text().split(), process)[0])


def stopped_in_a_trial(output: Path, process: subprocess.Popen[str]) -> int:
    """The second worker, which stands still while it has a trial in hand."""
    child = child_of(process)

    def stands() -> bool:
        if not running_of(output, child):
            return False
        os.kill(child, signal.SIGSTOP)
        if running_of(output, child):
            return True
        os.kill(child, signal.SIGCONT)
        return False

    wait_until(stands, process)
    return child


def assert_whole(output: Path, total: int) -> None:
    done = [trial for trial in trials_of(output) if trials.counts(trial)]
    assert sorted(trial.user_attrs[trials.SLOT] for trial in done) == list(range(total))
    assert "running" not in {trials.outcome_of(trial) for trial in trials_of(output)}


@pytest.mark.slow
def test_two_workers_share_one_study(world: World, tmp_path: Path) -> None:
    output = tmp_path / "both"
    with started(*world.search(output, "--trials", str(TOTAL), "--json"), cwd=tmp_path) as process:
        told, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    assert json.loads(told)["trials"]["done"] == TOTAL
    assert json.loads(told)["settings"]["workers"] == 2
    assert all(row["held_out"] > 0 for row in json.loads(told)["comparison"])
    assert_whole(output, TOTAL)
    owners = {trial.user_attrs[trials.OWNER] for trial in trials_of(output)}
    assert len(owners) == 2
    assert "--workers 2" in (output / run_folder.COMMAND).read_text()
    assert f"trials: {TOTAL}/{TOTAL}, best" in complaints
    assert "note: worker" not in complaints
    ended = run(*world.search(output, "--trials", str(TOTAL), "--workers", "2"))
    assert ended.exit_code == 0 and "measuring the best" not in ended.stderr
    again = run(*world.search(output, "--trials", str(TOTAL + 1), "--json"))
    assert again.exit_code == 0, again.stderr  # any number of workers goes on with it
    assert_whole(output, TOTAL + 1)


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_trial(world: World, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    with started(*world.search(output, "--trials", str(TOTAL)), cwd=tmp_path) as process:
        child = stopped_in_a_trial(output, process)
        [lost] = running_of(output, child)
        os.kill(child, signal.SIGKILL)
        slot = trials_of(output)[lost].user_attrs.get(trials.SLOT, lost)
        _, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    said = "note: worker 2 of 2 was killed (SIGKILL); the trial that it ran is tried again"
    assert complaints.count(said) == 1
    assert_whole(output, TOTAL)
    assert trials.outcome_of(trials_of(output)[lost]) == "abandoned"
    [again] = [t for t in trials_of(output) if t.user_attrs.get(trials.RETRY_OF) == lost]
    assert again.user_attrs[trials.SLOT] == slot and trials.counts(again)


@pytest.mark.slow
def test_ctrl_c_stops_all_and_the_same_command_goes_on(world: World, tmp_path: Path) -> None:
    output = tmp_path / "stopped"
    with started(*world.search(output, "--trials", "5000"), cwd=tmp_path) as process:
        child = child_of(process)
        wait_until(lambda: running_of(output, child), process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        told, complaints = process.communicate(timeout=120)
    assert process.returncode == 130, complaints
    assert "Traceback" not in complaints and "note: worker" not in complaints
    assert "interrupted, best so far" in complaints
    assert complaints.splitlines()[-1].endswith("--trials 5000 --workers 2")
    assert not Path(f"/proc/{child}").exists()
    done = sum(map(trials.counts, trials_of(output)))
    assert f" {done} of 5000 trials" in told  # what the second worker did at the end too
    more = str(done + 2)
    resumed = json.loads(run(*world.search(output, "--trials", more, "--json")).stdout)
    assert resumed["finished"] and resumed["trials"]["done"] == done + 2
    assert_whole(output, done + 2)


def test_no_more_workers_are_started_than_trials_lack(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vflowopt_search.workers.Workers.__enter__", _too_many)
    asked = [*world.search(tmp_path / "out", "--workers", "4"), "--trials"]
    assert run(*asked, "1").exit_code == 0
    assert run(*asked, "1").exit_code == 0
    with pytest.raises(AssertionError, match="2 workers"):
        run(*asked, "4")


def _too_many(workers: Workers) -> Workers:
    raise AssertionError(f"{len(workers._tasks)} workers")


def test_all_processes_of_a_search_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(workers: Workers) -> Workers:
        raise AssertionError(f"{workers._environment[THREADS]} beside {torch.get_num_threads()}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(THREADS, raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(12)))
    monkeypatch.setattr("vflowopt_search.workers.Workers.__enter__", begin)
    job = jobs_of(monkeypatch, "--workers", "4")
    before = torch.get_num_threads()
    with pytest.raises(AssertionError, match=r"^3 beside 3$"):
        run_all(job, cast("Any", None), Silent())
    assert torch.get_num_threads() == before


def test_what_others_did_is_shown_once() -> None:
    class Listening(Silent):
        def trial(self, report: TrialReport) -> None:
            lines.append(report)

    lines: list[TrialReport] = []
    latest, outcome = Latest(Listening()), fake_run(total=3)
    latest.catch_up(outcome, 3)
    latest.catch_up(outcome, 3)
    assert [(report.done, report.total) for report in lines] == [(3, 3)]
    assert lines[0].best == outcome.study.best_value


def jobs_of(monkeypatch: pytest.MonkeyPatch, *typed: str) -> Job:
    jobs: list[Job] = []
    monkeypatch.setattr("vflowopt_search.cli.run.run", lambda job, as_json: jobs.append(job))
    result = run("search", "--output", "out", *typed)
    assert result.exit_code == 0, result.stderr
    return jobs[0]


def devices_of(job: Job) -> list[str]:
    return [job.source.device, *(one.source.device for one in _tasks(job, job.workers).values())]


def test_devices_are_given_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs_of(monkeypatch, "--workers", "3", "--devices", "cuda:0, cuda:1")
    assert devices_of(job) == ["cuda:0", "cuda:1", "cuda:0"]
    assert "--workers 3 --devices cuda:0,cuda:1 --output" in command_of(job)
    assert list(_tasks(job, job.workers)) == ["worker 2 of 3 (cuda:1)", "worker 3 of 3 (cuda:0)"]
    assert {one.workers for one in _tasks(job, job.workers).values()} == {1}
    alone = jobs_of(monkeypatch, "--devices", "cuda:1,cpu")
    assert (alone.workers, devices_of(alone)) == (2, ["cuda:1", "cpu"])
    assert jobs_of(monkeypatch).workers == 1


def test_without_devices_all_gpus_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = jobs_of(monkeypatch, "--workers", "3")
    one = jobs_of(monkeypatch, "--workers", "2", "--device", "cuda:1")
    assert devices_of(auto) == ["auto"] * 3  # there is no GPU here
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert devices_of(auto) == ["auto", "cuda:1", "cuda:0"]
    assert devices_of(one) == ["cuda:1", "cuda:1"]


@pytest.mark.parametrize(
    ("devices", "device", "said"),
    [
        ("cuda:0,gpu", "auto", "'gpu' is no device that models run on here"),
        ("cuda:0,", "auto", "'' is no device"),
        ("cuda:0,cuda:1", "cpu", "but --device cpu is one for all; give one of the two"),
    ],
)
def test_wrong_devices_are_refused(devices: str, device: str, said: str) -> None:
    with pytest.raises(typer.BadParameter, match=said) as told:
        parse_devices(devices, device)
    assert told.value.param_hint == "--devices"


def test_a_device_that_is_not_there_is_refused_before_any_work(
    world: World, tmp_path: Path
) -> None:
    result = run(*world.search(tmp_path / "out", "--devices", "cpu,cuda:9"))
    assert result.exit_code == 1
    assert "device cuda:9 was asked for but torch sees" in result.stderr.splitlines()[-1]
    assert "reading" not in result.stderr
