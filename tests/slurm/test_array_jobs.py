"""`--engine slurm` on a real Slurm: array jobs, killed processes, a lost node, jobs submitted again."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.precompute.command import COLUMNS, arguments, assert_same_records, inspect, precompute, records
from tests.precompute.pictures import write_pictures
from tests.slurm.cluster import Cluster, wait_for

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]
FLAGS = ("--part-size", "2", "--batch-size", "2", "--workers", "1", "--dtype", "fp32")
SAMPLES = 300
PARTS = SAMPLES // 2
BUDGET = 240
"Seconds for a job that is requeued."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pictures"
    write_pictures(folder, SAMPLES)
    return folder


@pytest.fixture(scope="module")
def unbroken(data: Path, pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run in one process makes."""
    folder = tmp_path_factory.mktemp("caches") / "unbroken"
    precompute(data, folder, pocket, *FLAGS)
    return folder


@pytest.fixture
def submit(slurm: Cluster, data: Path, pocket: Path, tmp_path: Path):
    """Give the command with --engine slurm; returns what it printed and the job's number, "" for none."""

    def run(tasks: int, **environment: str) -> tuple[str, str]:
        flags = [
            *FLAGS,
            "--engine",
            "slurm",
            "--tasks",
            str(tasks),
            "--gpus-per-task",
            "0",
            "--cpus-per-task",
            "1",
        ]
        command = [sys.executable, "-m", "precompute", *arguments(data, tmp_path / "cache", pocket, *flags)]
        environment = {**slurm.environment, "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found = re.search(r"submitted job (\d+)", done.stdout)
        return done.stdout, found[1] if found else ""

    return run


def commits(cache: Path) -> dict[str, int]:
    """Commit records of parts → when they were made."""
    return {
        p.relative_to(cache).as_posix(): p.stat().st_mtime_ns
        for p in cache.glob("columns/*/*/commits/part-*")
    }


def wait_for_commits(cache: Path, count: int) -> None:
    wait_for(lambda: len(commits(cache)) >= count, f"{count} commits")


def wait_for_end(slurm: Cluster, job: str) -> None:
    wait_for(lambda: not slurm.queue(job), f"end of job {job}", patience=BUDGET)


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("cache-slurm/*_log.*")))


def assert_whole(cache: Path, unbroken: Path) -> None:
    """Complete, each part committed once, and the same records as of an uninterrupted run."""
    found = inspect(cache)
    assert found["complete"] is True
    assert found["cached"] + found["rejects"] == found["samples"] == SAMPLES
    assert len(commits(cache)) == PARTS * len(COLUMNS)
    assert_same_records(records(cache), records(unbroken))


def test_an_array_job_makes_what_one_process_makes(
    slurm: Cluster, submit, unbroken: Path, tmp_path: Path
) -> None:
    printed, job = submit(2, RANK="0", WORLD_SIZE="1", SLURM_JOB_ID="1", SLURM_PROCID="0")
    assert f"submitted job {job}: 2 tasks for {PARTS} parts, output in {tmp_path / 'cache-slurm'}" in printed
    assert printed.endswith(f"watch it with: precompute --status --cache {tmp_path / 'cache'}\n")
    wait_for_end(slurm, job)
    assert_whole(tmp_path / "cache", unbroken)
    said = logs(tmp_path)
    assert said.count(f"{SAMPLES} samples found = ") == 2, said
    again, other = submit(2)
    assert other == ""
    assert "nothing to do: every part is committed" in again


def test_a_killed_process_is_queued_again_and_goes_on(
    slurm: Cluster, submit, unbroken: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    _, job = submit(1)
    wait_for_commits(cache, 3)
    (pid,) = slurm.processes(job)
    os.kill(pid, signal.SIGKILL)
    before = commits(cache)
    assert len(before) < PARTS * len(COLUMNS)
    wait_for_end(slurm, job)
    assert "JobState=COMPLETED" in slurm.describe(job)
    assert "Restarts=1" in slurm.describe(job)
    assert_whole(cache, unbroken)
    assert before.items() <= commits(cache).items()


def test_a_task_that_reaches_its_time_limit_is_queued_again_and_goes_on(
    slurm: Cluster, submit, unbroken: Path, tmp_path: Path
) -> None:
    """Slurm sends SIGUSR2 a while before the limit, as it does before it preempts a job."""
    cache = tmp_path / "cache"
    _, job = submit(1)
    wait_for_commits(cache, 3)
    slurm.command("scancel", "--signal", "USR2", job)
    wait_for_end(slurm, job)
    assert "JobState=COMPLETED" in slurm.describe(job)
    assert "Restarts=1" in slurm.describe(job)
    assert_whole(cache, unbroken)


def test_srun_starts_ranks_that_share_the_work(
    slurm: Cluster, data: Path, pocket: Path, unbroken: Path, tmp_path: Path
) -> None:
    command = ["srun", "-N2", "-n2", sys.executable, "-m", "precompute"]
    command += arguments(data, tmp_path / "cache", pocket, *FLAGS)
    environment = {**slurm.environment, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=BUDGET)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("rank 1 of 2 waits for the plan of rank 0") == 1
    assert done.stdout.count(f"{SAMPLES} samples found = ") == 2
    assert_whole(tmp_path / "cache", unbroken)


def test_tasks_of_a_lost_node_are_queued_again(
    slurm: Cluster, submit, unbroken: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    _, job = submit(1)
    wait_for_commits(cache, 3)
    ((pid, node),) = slurm.processes(job).items()
    slurm.kill_node(node)
    try:
        before = commits(cache)
        assert len(before) < PARTS * len(COLUMNS)
        wait_for_end(slurm, job)
        assert "JobState=COMPLETED" in slurm.describe(job)
        assert "Restarts=1" in slurm.describe(job)
    finally:
        slurm.start_node(node)
    assert_whole(cache, unbroken)
    assert before.items() <= commits(cache).items()
    assert not Path(f"/proc/{pid}").exists()


def test_a_cancelled_job_that_is_submitted_again_does_what_is_missing(
    slurm: Cluster, submit, unbroken: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    _, job = submit(2)
    wait_for_commits(cache, 3)
    slurm.command("scancel", job)
    wait_for_end(slurm, job)
    before = commits(cache)
    assert len(before) < PARTS * len(COLUMNS)
    count = Counter(name.rpartition("/")[2] for name in before)
    left = PARTS - sum(columns == len(COLUMNS) for columns in count.values())
    printed, other = submit(2)
    assert f"submitted job {other}: 2 tasks for {left} parts" in printed
    wait_for_end(slurm, other)
    assert slurm.describe(job).count("JobState=CANCELLED") == 2
    assert slurm.describe(other).count("JobState=COMPLETED") == 2
    assert_whole(cache, unbroken)
    assert before.items() <= commits(cache).items()
