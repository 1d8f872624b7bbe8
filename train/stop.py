"""SIGTERM and SIGUSR1 ask a run to write a checkpoint and end: what Slurm sends before it takes a node back.

A signal may reach the processes of a run in different steps, or only one of them. So in each step they tell
each other whether one has come, on the CPU and one step late, which makes nobody wait; all stop at one step.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether the run should end, as all ranks agree."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.name = ""
        "Of the signal that this process got."
        self._several = accelerator.num_processes > 1
        self._group: Any = torch.distributed.new_group(backend="gloo") if self._several else None
        self._asked: tuple[Any, torch.Tensor] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the signals are noted; outside they end the process as they always do."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread can be told of signals
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self) -> bool:
        """Ask in every step, on all ranks; the same answer on all."""
        if not self._several:
            return bool(self.name)
        stop = self._answer()
        flag = torch.tensor([float(bool(self.name))])
        self._asked = (torch.distributed.all_reduce(flag, group=self._group, async_op=True), flag)
        return stop

    def finish(self) -> None:
        """Take in the answer that is still under way, before the ranks part."""
        self._answer()
        self._asked = None

    def _answer(self) -> bool:
        """What the ranks knew when they last asked."""
        if self._asked is None:
            return False
        work, flag = self._asked
        work.wait()
        return bool(flag.item() > 0)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.name = signal.Signals(number).name
