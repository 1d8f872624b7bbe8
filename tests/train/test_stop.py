"""SIGTERM and SIGUSR1: a checkpoint, exit code 0, a line that says how to go on."""

import signal
import subprocess
import sys
import time

import pytest

from tests.train import runs

LONG = ("--max-train-steps", "100000", "--checkpointing-steps", "100000")


def started(kind, cache, output, *flags, ranks=1):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    module = ["-m", f"train.{kind}", *runs.arguments(cache, output, *LONG, *flags)]
    return subprocess.Popen(
        [sys.executable, *(launcher if ranks > 1 else []), *module],
        cwd=runs.ROOT,
        env={**runs.environment(), "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_steps(process, output, number=3):
    """Until so many lines of metrics are there."""
    path = output / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_text().count("\n") < number:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no steps were taken"
        time.sleep(0.02)


@pytest.mark.parametrize(("kind", "number"), [("prior", signal.SIGTERM), ("decoder", signal.SIGUSR1)])
def test_signal_ends_a_run_with_a_checkpoint(kind, number, cache, tmp_path):
    output = tmp_path / "out"
    lines = ("--logging-steps", "5")  # most stops fall between two lines
    process = started(kind, cache, output, *lines)
    wait_for_steps(process, output, number=1)
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 0, stderr
    (checkpoint,) = output.glob("checkpoint-*")
    step = int(checkpoint.name.partition("-")[2])
    last = stderr.strip().splitlines()[-1].rpartition("\r")[2]
    assert last == f"{number.name}: ended early; the same command continues from {checkpoint}"
    assert not (output / "model_index.json").exists()

    flags = (*lines, "--max-train-steps", str(step + 7), "--checkpointing-steps", "100000")
    runs.train(kind, cache, output, *flags)
    whole = runs.train(kind, cache, tmp_path / "whole", *flags)
    assert runs.metrics(output) == runs.metrics(whole)


def test_signal_to_one_rank_ends_all_at_the_same_step(cache, tmp_path):
    output = tmp_path / "out"
    process = started("prior", cache, output, ranks=2)
    wait_for_steps(process, output)
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    workers = [int(pid) for pid in found.stdout.split()]
    assert len(workers) == 2
    subprocess.run(["kill", "-USR1", str(workers[1])], check=True)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 0, stderr
    assert len(list(output.glob("checkpoint-*"))) == 1
    assert "ended early; the same command continues from" in stderr


EXPORTING = """
import os, signal, sys
from train import fit, prior

finish = fit._finish
def signalled(run):
    os.kill(os.getpid(), signal.SIGTERM)
    finish(run)
fit._finish = signalled
prior.main()
"""


def test_signal_during_the_export_lets_it_finish(cache, tmp_path):
    output = tmp_path / "out"
    done = runs.script(EXPORTING, *runs.arguments(cache, output, "--max-train-steps", "1"))
    assert done.returncode == 0, done.stderr
    assert (output / "model_index.json").is_file()


LOADING = """
import os, signal, sys
from train import fit, prior

load = fit.open_source
def signalled(*arguments):
    os.kill(os.getpid(), signal.SIGUSR1)
    return load(*arguments)
fit.open_source = signalled
prior.main()
"""


def test_signal_before_the_first_step_ends_without_a_step(cache, tmp_path):
    output = tmp_path / "out"
    done = runs.script(LOADING, *runs.arguments(cache, output))
    assert done.returncode == 0, done.stderr
    said = "ended early; the same command begins again from the start (no checkpoint was written yet)"
    assert done.stderr.strip().splitlines()[-1].endswith(f"SIGUSR1: {said}")
    assert not list(output.glob("checkpoint-*"))
