"""Several processes on one study: started, told to stop, and told of where one ends early.

A worker reads from stdin what it is to do, works on the study as any process could, and stops
when its stdin ends. So none outlives the process that started it, however that one ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread
from types import TracebackType
from typing import IO, Any

from vflowopt_search.errors import StudyError

THREADS = "OMP_NUM_THREADS"
"""Environment variable by which a user says how many threads a process has."""


@dataclass
class _Worker:
    name: str
    process: subprocess.Popen[bytes]
    errors: IO[bytes]


class Workers(AbstractContextManager["Workers"]):
    """Inside the `with` block, workers run; at its end they are told to stop, and waited for.

    Args:
        module: what a worker runs, as `python -m` takes it; it calls `task` first.
        tasks: by the name of each worker what it is to do; can be pickled.
        threads: of each worker on the CPU; None leaves that to torch.

    Raises:
        StudyError: they cannot be started.
    """

    def __init__(self, module: str, tasks: Mapping[str, Any], threads: int | None) -> None:
        self._command = [sys.executable, "-P", "-m", module]
        self._tasks = tasks
        # as `python -P` finds nothing that lies about in the current folder
        path = os.pathsep.join(str(Path(folder).absolute()) for folder in sys.path)
        self._environment = {**os.environ, "PYTHONPATH": path}
        if threads is not None:
            self._environment[THREADS] = str(threads)
        self._running: list[_Worker] = []

    def __enter__(self) -> Workers:
        try:
            for name, what in self._tasks.items():
                self._running.append(self._started(name, pickle.dumps(what)))
        except OSError as error:
            self.stop()
            raise StudyError(
                f"{len(self._tasks)} more processes cannot be started ({error.strerror}); ask for "
                f"fewer"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether any worker still ran when it was last looked at."""
        return bool(self._running)

    def ended(self) -> list[str]:
        """A sentence for each worker that ended since this was asked last, other than well."""
        gone = [worker for worker in self._running if worker.process.poll() is not None]
        self._running = [worker for worker in self._running if worker not in gone]
        told = [_told(worker) for worker in gone]
        for worker in gone:
            _closed(worker)
        return [sentence for sentence in told if sentence]

    def stop(self) -> None:
        """Let every worker stop as after Ctrl-C, and wait for that; another Ctrl-C kills them."""
        try:
            for worker in self._running:
                assert worker.process.stdin is not None  # a pipe
                with suppress(BrokenPipeError):
                    worker.process.stdin.close()
            for worker in self._running:
                worker.process.wait()
        except KeyboardInterrupt:
            for worker in self._running:
                worker.process.kill()
            raise
        finally:
            for worker in self._running:
                worker.process.wait()
                _closed(worker)
            self._running = []

    def _started(self, name: str, what: bytes) -> _Worker:
        errors = TemporaryFile()  # noqa: SIM115 - closed when the worker has ended
        try:
            process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # Ctrl-C reaches this process alone, which tells the others
            )
        except OSError:
            errors.close()
            raise
        assert process.stdin is not None  # a pipe
        with suppress(BrokenPipeError):  # it has ended, and says why by itself
            process.stdin.write(what)
            process.stdin.flush()
        return _Worker(name, process, errors)


def task() -> Any:
    """In a worker: what it is to do; from now on the end of stdin is Ctrl-C."""
    what = pickle.load(sys.stdin.buffer)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup ... & it is ignored
    Thread(target=_interrupt_at_end, args=(sys.stdin.fileno(),), daemon=True).start()
    return what


def threads_each(num_workers: int) -> int | None:
    """How many threads each of several processes has on this machine's cores; None: as it is.

    What the user says with `OMP_NUM_THREADS` is left alone.
    """
    if THREADS in os.environ or num_workers == 1:
        return None
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // num_workers)


@contextmanager
def with_threads(threads: int | None) -> Iterator[None]:
    """Inside the block, torch has so many threads in this process; None changes nothing."""
    import torch  # after the command line has been read

    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _interrupt_at_end(stdin: int) -> None:
    # not by Python's buffer, which may not be read from while the interpreter ends
    while os.read(stdin, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def _told(worker: _Worker) -> str:
    code = worker.process.returncode
    if code == 0:
        return ""
    if code < 0:
        return (
            f"{worker.name} was killed ({signal.Signals(-code).name}); "
            f"the trial that it ran is tried again, and the others go on"
        )
    worker.errors.seek(0)
    lines = worker.errors.read().decode(errors="replace").splitlines()
    reason = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
    return f"{worker.name} ended ({reason}); the others go on"


def _closed(worker: _Worker) -> None:
    assert worker.process.stdin is not None  # a pipe
    with suppress(BrokenPipeError):
        worker.process.stdin.close()
    worker.errors.close()
