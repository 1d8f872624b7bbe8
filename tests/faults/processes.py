"""Processes that are started, watched through what they leave on the disk, and killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TICK = 0.001
"Seconds between two looks at the disk."


@dataclass(frozen=True)
class Process:
    child: subprocess.Popen[bytes]
    log: Path
    "What it printed on stdout and stderr."

    def kill(self) -> None:
        """SIGKILL; fails if it had ended before."""
        self.child.send_signal(signal.SIGKILL)
        assert self.child.wait() == -signal.SIGKILL, self.log.read_text()

    def wait(self, seconds: float) -> str:
        """Until it ends, which must be well; what it printed."""
        assert self.child.wait(timeout=seconds) == 0, self.log.read_text()
        return self.log.read_text()


def start(log: Path, module: str, *arguments: str) -> Process:
    """`python -m module arguments` of this tree, in one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("xb") as file:
        command = [sys.executable, "-m", module, *arguments]
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    return Process(child, log)


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Look at the disk until it is so."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(TICK)
