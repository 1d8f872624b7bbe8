"""Processes that read a cache while another one adds to it: each keeps what it opened."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_tools.cache.reader import CacheReader
from tests.data_tools.caches import COLUMNS
from tests.faults.processes import ROOT, start
from tests.faults.reader import summary
from tests.faults.writer import FORMATS, PART_SIZE, fill

SAMPLES, FIRST = 24, 4
"Samples of the plan; parts that are there when the readers open."
PATIENCE = 60.0
Reader = subprocess.Popen[str]


@contextmanager
def reading(root: Path) -> Iterator[Reader]:
    """A process that has opened the cache."""
    command = [sys.executable, "-m", "tests.faults.reader", str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) as child:
        try:
            assert _line(child) == "open"
            yield child
        finally:
            child.kill()


def ask(reader: Reader) -> list[int | str]:
    """Samples that it sees, and the hash of all it reads now."""
    assert reader.stdin is not None
    reader.stdin.write("\n")
    reader.stdin.flush()
    answer: list[int | str] = json.loads(_line(reader))
    return answer


def _line(reader: Reader) -> str:
    assert reader.stdout is not None
    return reader.stdout.readline().rstrip("\n")


@pytest.mark.parametrize("format", FORMATS)
def test_two_readers_keep_their_snapshots_while_a_third_process_adds_parts(
    tmp_path: Path, format: str
) -> None:
    root = tmp_path / "cache"
    fill(root, format, SAMPLES, parts=FIRST)
    before = json.loads(summary(CacheReader(root, COLUMNS, allow_partial=True)))
    assert before[0] == FIRST * PART_SIZE
    with reading(root) as one, reading(root) as other:
        assert ask(one) == before  # the other reads nothing, not even an index, until all is written
        writer = start(tmp_path / "log.txt", "tests.faults.writer", str(root), format, str(SAMPLES))
        meanwhile, end = 0, time.monotonic() + PATIENCE
        while writer.child.poll() is None:
            assert ask(one) == before
            meanwhile += 1
            assert time.monotonic() < end
        writer.wait(PATIENCE)
        assert meanwhile > 0
        assert (ask(one), ask(other)) == (before, before)
        with reading(root) as late:
            found = ask(late)
    fill(tmp_path / "alone", format, SAMPLES)
    assert found == json.loads(summary(CacheReader(tmp_path / "alone", COLUMNS)))
    assert found[0] == SAMPLES
