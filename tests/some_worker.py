"""A worker that does as it is told: ends well, fails, dies, or goes on until it is stopped."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from vflowopt_search.workers import task

if __name__ == "__main__":
    what, note = task()
    try:
        Path(note).write_text(f"{os.environ.get('OMP_NUM_THREADS')}")
        match what:
            case "fail":
                sys.exit("the model has no layer 9")
            case "fail silently":
                sys.exit(3)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "go on":
                time.sleep(60)
                Path(note).write_text("not stopped")
            case "be deaf":
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                Path(note).write_text("deaf")
                time.sleep(60)
    except KeyboardInterrupt:
        Path(note).write_text("stopped")
        sys.exit(130)
