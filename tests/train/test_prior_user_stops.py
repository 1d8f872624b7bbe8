"""Ctrl-C on a process that trains."""

import signal

import pytest

from tests.faults.processes import start, wait_until
from tests.train import runs
from train.checkpoint import checkpoints, step_of

FLAGS = ("--checkpointing-steps", "2", "--cond-dropout", "0.2")
LONG = 180
"Seconds that a start or an end may take on a busy machine."


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_says_how_to_go_on_and_the_same_command_ends_as_if_it_had_not_been(times, cache, tmp_path):
    """The second one comes while Python takes itself down."""
    output = tmp_path / "out"
    endless = runs.arguments(cache, output, *FLAGS, "--max-train-steps", "100000")
    process = start(tmp_path / "log", "train.prior", *endless)
    wait_until(lambda: bool(checkpoints(output)) or process.child.poll() is not None, LONG, "a checkpoint")
    process.child.send_signal(signal.SIGINT)
    for _ in range(1, times):
        wait_until(lambda: "interrupted" in process.log.read_text(), LONG, "its last line")
        process.child.send_signal(signal.SIGINT)
    # both are 130 for a shell
    assert process.child.wait(LONG) in ((130,) if times == 1 else (130, -signal.SIGINT))

    said = process.log.read_text()
    last = checkpoints(output)[-1]
    assert said.splitlines()[-1] == f"interrupted; the same command continues from {last}"
    assert "Traceback" not in said
    assert not list(output.glob(".tmp*"))

    steps = ("--max-train-steps", str(step_of(last) + 2))
    ended = runs.program("prior", *runs.arguments(cache, output, *FLAGS, *steps))
    assert ended.code == 0
    assert any(line == f"resuming from {last}" for line in ended.lines)
    whole = runs.train("prior", cache, tmp_path / "whole", *FLAGS, *steps)
    assert runs.metrics(output) == runs.metrics(whole)
    assert runs.same_tensors(runs.weights(output / "prior"), runs.weights(whole / "prior"))
