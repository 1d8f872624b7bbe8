"""Real processes: one killed without warning, two at the same cache at once."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.precompute.command import arguments, assert_same_records, inspect, precompute, records

ROOT = Path(__file__).parents[2]
PATIENCE = 60  # seconds


def start(data: Path, cache: Path, pocket: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "precompute", *arguments(data, cache, pocket, *flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def wait_for(root: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Return when a file of that pattern exists; a process that ends before is a failure."""
    tick = threading.Event()
    for _ in range(PATIENCE * 100):
        if any(root.glob(pattern)):
            return
        assert process.poll() is None, process.communicate()[0]
        tick.wait(0.01)
    pytest.fail(f"no {pattern} within {PATIENCE} s")


def test_a_killed_run_is_finished_by_the_same_command(
    cache: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    flags = ("--dtype", "fp32", "--batch-size", "1", "--workers", "1")
    process = start(pictures, folder, pocket, *flags)
    wait_for(folder, "columns/*/*/commits/part-*.json", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 0 < len(list(folder.glob("columns/*/*/commits/part-*.json"))) < 12
    assert inspect(folder)["complete"] is False
    precompute(pictures, folder, pocket, *flags)
    precompute(pictures, tmp_path / "unbroken", pocket, *flags)
    assert_same_records(records(folder), records(tmp_path / "unbroken"))


def test_two_processes_share_a_cache_and_commit_every_part_once(
    cache: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    pair = [start(pictures, folder, pocket, "--dtype", "fp32") for _ in range(2)]
    printed = [process.communicate(timeout=PATIENCE)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], printed
    assert any("24 samples found = 22 cached + 2 rejected" in text for text in printed)
    commits = [path.name for path in folder.glob("columns/*/*/commits/*")]
    assert len(commits) == 3 * 4 + 2
    assert not list(folder.rglob(".tmp-*"))
    assert_same_records(records(folder), records(cache))


def test_two_processes_follow_a_changed_source_together(
    cache: Path, pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(pictures, tmp_path / "data"))
    folder = Path(shutil.copytree(cache, tmp_path / "cache"))
    for name in ("00.jpg", "01.png", "02.png", "03.jpg", "04.png", "05.jpg", "06.jpg", "08.png"):
        (data / name).rename(data / f"new-{name}")
    lines = (data / "metadata.jsonl").read_text("utf-8").replace('"file_name": "0', '"file_name": "new-0')
    lines = lines.replace("new-07", "07").replace("new-09", "09")
    (data / "metadata.jsonl").write_text(lines, "utf-8")
    pair = [start(data, folder, pocket, "--dtype", "fp32") for _ in range(2)]
    printed = [process.communicate(timeout=PATIENCE)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], printed
    assert any("24 samples found = 22 cached + 2 rejected" in text for text in printed)
    assert [path.name for path in sorted((folder / "plans").iterdir())] == ["000001.json", "000002.json"]
    assert len(list((folder / "samples").iterdir())) == 6
    assert len(list(folder.glob("columns/*/*/commits/part-*"))) == 3 * 6
    precompute(data, tmp_path / "fresh", pocket, "--dtype", "fp32")
    found, wanted = inspect(folder), inspect(tmp_path / "fresh")
    assert [found[name] for name in ("samples", "cached", "complete")] == [
        wanted[name] for name in ("samples", "cached", "complete")
    ]


def test_of_two_first_runs_with_other_options_at_most_one_succeeds(
    pictures: Path, pocket: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    flags = ("--columns", "image", "--batch-size", "1")
    pair = [start(pictures, folder, pocket, *flags, "--dtype", dtype) for dtype in ("fp32", "bf16")]
    printed = [process.communicate(timeout=PATIENCE)[0] for process in pair]
    codes = [process.returncode for process in pair]
    assert sorted(codes) in ([0, 2], [2, 2]), printed
    loser = printed[codes.index(2)]
    assert "column image was made otherwise (dtype " in loser
    if 0 in codes:
        winner = ("float32", "bfloat16")[codes.index(0)]
        assert f'"dtype": "{winner}"' in (folder / "columns/image/column.json").read_text()
