"""`train-prior` and `train-decoder` killed with SIGKILL at any moment, and given again until they end.

Nothing of the trainers is replaced: the commands run in processes of their own, which are watched through the
files they leave. What the runs have written in the end is what one run that nobody disturbed has written.
"""

import functools
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.faults.processes import Process, wait_until
from tests.train import runs
from tests.train.test_ranks import assert_close
from tests.train.test_resume import assert_same_run
from train.checkpoint import checkpoints, step_of
from train.metrics import read_metrics

EVERY, STEPS = 5, 40
"Optimizer steps between two checkpoints, and of a run that is killed once."
OFTEN = {"prior": (9, 80), "decoder": (4, 40)}
"Kills of one that is killed many times, and its steps."
PATIENCE = 300.0
"Seconds."
FLAGS = (
    *("--max-train-steps", str(STEPS), "--checkpointing-steps", str(EVERY), "--checkpoints-total-limit", "2"),
    *("--gradient-accumulation-steps", "2", "--validation-fraction", "0.2", "--validation-steps", "7"),
    *("--lr-scheduler", "cosine", "--lr-warmup-steps", "9", "--cond-dropout", "0.2", "--snr-gamma", "5"),
    *("--adam-weight-decay", "0.01", "--use-ema", "--timestep-sampling", "stratified"),
)
ONE, TWO = ("--train-batch-size", "2"), ("--train-batch-size", "1")
"The same global batch on one rank and on two."
STEADY = ("--adam-epsilon", "1e-2")
"Adam's own epsilon blows rounding up to whole steps where a gradient is next to zero."


def begin(log: Path, kind: str, cache: Path, output: Path, *flags: str, **environment: str) -> Process:
    """`python -m train.<kind>`, as a user's shell starts it."""
    with log.open("xb") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", f"train.{kind}", *runs.arguments(cache, output, *FLAGS, *flags)],
            cwd=runs.ROOT,
            env={**runs.environment(), **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return Process(child, log)


def begin_ranks(logs: list[Path], kind: str, cache: Path, output: Path, *flags: str) -> list[Process]:
    """One process for each log, that find each other as those of `torchrun` or `srun` do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": str(len(logs)), "LOCAL_WORLD_SIZE": str(len(logs)), "MASTER_ADDR": "127.0.0.1"}
    world |= {"MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    return [
        begin(log, kind, cache, output, *flags, **world, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, log in enumerate(logs)
    ]


def reached(output: Path) -> int:
    """Step of the last whole line of metrics; 0 if there is none."""
    return max((line["step"] for line in read_metrics(output / "metrics.jsonl")), default=0)


def saved(output: Path) -> int:
    """Step of the last checkpoint; 0 if there is none."""
    return max(map(step_of, checkpoints(output)), default=0)


def being_saved(output: Path) -> int:
    """Step of the last checkpoint that is being written, or was when a run was killed; 0 if there is none."""
    names = [path.name for path in output.glob(".tmp-checkpoint-*")]
    return max((int(name.rpartition("-")[2]) for name in names), default=0)


MOMENTS: tuple[Callable[[Path, Path, int], bool], ...] = (
    lambda output, log, goal: reached(output) >= goal,
    lambda output, log, goal: being_saved(output) >= goal,
    lambda output, log, goal: "resuming" in log.read_text(),
    lambda output, log, goal: saved(output) >= goal,
)
"""What kills wait for, in turn, given a step that no run before has reached: (output, log, step) -> bool.

That step; a checkpoint half written; the beginning of a run that continues; a new checkpoint.
"""


@pytest.fixture(scope="module")
def undisturbed(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Output of the run with some more flags, in this process, made once."""

    @functools.cache
    def run(kind: str, *flags: str) -> Path:
        output = tmp_path_factory.mktemp("undisturbed") / kind
        return runs.train(kind, cache, output, *FLAGS, *flags)

    return run


def test_run_killed_at_a_random_step_ends_as_the_undisturbed_one(cache, undisturbed, tmp_path):
    output = tmp_path / "out"
    goal = int(np.random.default_rng(6).integers(EVERY, STEPS // 2))
    process = begin(tmp_path / "log", "prior", cache, output, *ONE)
    try:
        wait_until(lambda: reached(output) >= goal, PATIENCE, f"step {goal}")
    finally:
        process.kill()
    assert goal - EVERY <= saved(output) <= reached(output) < STEPS
    ended = runs.program("prior", *runs.arguments(cache, output, *FLAGS, *ONE))
    assert ended.code == 0, ended.stderr
    assert_same_run("prior", output, undisturbed("prior", *ONE))


@pytest.mark.faults
@pytest.mark.parametrize("kind", runs.KINDS)
def test_run_killed_many_times_ends_as_the_undisturbed_one(kind, cache, undisturbed, tmp_path):
    output, rng = tmp_path / "out", np.random.default_rng(1)
    kills, steps = OFTEN[kind]
    flags = (*ONE, "--max-train-steps", str(steps))
    begun, lost, halves = [], [], set()
    for number in range(kills):
        log, goal = tmp_path / f"{number}.log", reached(output) + int(rng.integers(1, EVERY + 1))
        moment = functools.partial(MOMENTS[number % len(MOMENTS)], output, log, goal)
        begun.append(saved(output))
        process = begin(log, kind, cache, output, *flags)
        try:
            wait_until(moment, PATIENCE, f"kill {number}, past step {goal}")
        finally:
            process.kill()
        halves |= {being_saved(output)} - {0}
        lost.append(reached(output) - saved(output))
    print(f"{kind}: began at {begun}, lost {lost} steps, checkpoints {halves} half written")
    assert begun == sorted(begun)
    assert begun[-1] > 0
    assert max(lost) > 0
    assert halves
    begin(tmp_path / "last.log", kind, cache, output, *flags).wait(PATIENCE)
    assert_same_run(kind, output, undisturbed(kind, *flags))
    assert not list(output.glob(".*")), "leftovers of what was killed"


@pytest.mark.parametrize("kind", ["prior", pytest.param("decoder", marks=pytest.mark.faults)])
def test_one_rank_continues_what_two_had_done_when_one_of_them_was_killed(kind, cache, undisturbed, tmp_path):
    output = tmp_path / "out"
    goal = int(np.random.default_rng(8).integers(EVERY, STEPS // 2))
    logs = [tmp_path / "rank0.log", tmp_path / "rank1.log"]
    ranks = begin_ranks(logs, kind, cache, output, *TWO, *STEADY)
    try:
        wait_until(lambda: reached(output) >= goal, PATIENCE, f"step {goal}")
        ranks[1].kill()
        assert ranks[0].child.wait(PATIENCE) != 0, "trained on without the other half of its batch"
    finally:
        for rank in ranks:
            rank.child.kill()
            rank.child.wait()
    last = saved(output)
    assert goal - EVERY <= last <= reached(output) < STEPS
    runs.train(kind, cache, output, *FLAGS, *ONE, *STEADY)
    alone = undisturbed(kind, *ONE, *STEADY)
    assert [line.keys() for line in runs.metrics(output)] == [line.keys() for line in runs.metrics(alone)]
    for key in ("loss", "validation_loss", "grad_norm", "lr"):
        assert_close(runs.series(output, key), runs.series(alone, key))


def test_what_killed_runs_have_left_half_written_or_half_deleted_is_cleared_away(cache, tmp_path):
    output = runs.train("prior", cache, tmp_path / "out", "--max-train-steps", "1")
    for name in (".tmp-checkpoint-7", ".tmp-deleted-checkpoint-0"):
        (output / name / "prior").mkdir(parents=True)
    runs.train("prior", cache, output, "--max-train-steps", "2")
    assert not list(output.glob(".*"))
    assert [path.name for path in checkpoints(output)] == ["checkpoint-1", "checkpoint-2"]
