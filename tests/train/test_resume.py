"""A run that was stopped, anywhere and however hard, ends as if it had not been."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.train import runs
from train.checkpoint import checkpoints
from train.step import Step

DIE = """
import os, signal, sys
from train import {kind}, step as steps

step = steps.Step.take
def dies(self, number, *rest):
    if number == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, number, *rest)
steps.Step.take = dies
{kind}.main()
"""


class Stopped(Exception):
    pass


def stop_before(monkeypatch, number):
    """Step `number` does not take place: the run ends there."""
    step = Step.take

    def stops(self, now, *rest):
        if now == number:
            raise Stopped
        step(self, now, *rest)

    monkeypatch.setattr(Step, "take", stops)


def interrupted(kind, cache, output, number, *flags):
    """A run with the standard flags that was stopped before step `number`."""
    with pytest.MonkeyPatch.context() as patch:
        stop_before(patch, number)
        with pytest.raises(Stopped):
            runs.train(kind, cache, output, *runs.STANDARD, *flags)
    return output


def assert_same_run(kind, found, wanted):
    """Weights, optimizer and metrics, bit for bit; the times in the metrics differ."""
    name = runs.TRAINED[kind]
    assert runs.metrics(found) == runs.metrics(wanted)
    last = max(line["step"] for line in runs.metrics(wanted))
    for folder in (name, f"checkpoint-{last}/{name}", f"checkpoint-{last}"):
        assert runs.same_tensors(runs.weights(found / folder), runs.weights(wanted / folder)), folder
    state = [json.loads((o / f"checkpoint-{last}/state.json").read_text()) for o in (found, wanted)]
    assert state[0] == state[1]


@pytest.mark.parametrize("kind", runs.KINDS)
@pytest.mark.parametrize("number", [3, 5])
def test_stopped_and_resumed_run_ends_as_the_uninterrupted_one(kind, number, cache, finished, tmp_path):
    output = interrupted(kind, cache, tmp_path / "out", number)
    assert [path.name for path in checkpoints(output)] == ["checkpoint-3"]
    assert max(line["step"] for line in runs.metrics(output)) >= number - 1
    assert not (output / "model_index.json").exists()
    runs.train(kind, cache, output, *runs.STANDARD)
    assert_same_run(kind, output, finished[kind])


def test_run_stopped_before_its_first_checkpoint_starts_again(cache, finished, tmp_path):
    output = interrupted("prior", cache, tmp_path / "out", 2)
    assert checkpoints(output) == []
    assert runs.metrics(output)
    runs.train("prior", cache, output, *runs.STANDARD)
    assert_same_run("prior", output, finished["prior"])


def test_lines_written_after_the_checkpoint_are_dropped_and_written_again(cache, finished, tmp_path):
    output = interrupted("prior", cache, tmp_path / "out", 5)
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines()
    late = json.loads(lines[-1])
    assert late["step"] > 3
    path.write_text("\n".join([*lines[:-1], json.dumps({**late, "loss": 99.0})]) + '\n{"step": 5, "lo')
    runs.train("prior", cache, output, *runs.STANDARD)
    assert runs.metrics(output) == runs.metrics(finished["prior"])


@pytest.mark.parametrize("kind", ["prior"])
def test_killed_process_is_continued_by_the_same_command(kind, cache, finished, tmp_path):
    output = tmp_path / "out"
    command_line = runs.arguments(cache, output, *runs.STANDARD)
    killed = subprocess.run(
        [sys.executable, "-c", DIE.format(kind=kind, step=4), *command_line],
        cwd=runs.ROOT,
        env=runs.environment(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr.decode()
    ended = runs.program(kind, *command_line)
    assert ended.code == 0
    assert any(line.endswith("checkpoint-3") and "resuming" in line for line in ended.lines)
    assert_same_run(kind, output, finished[kind])


def test_checkpoint_that_was_being_written_or_deleted_is_passed_over(cache, finished, tmp_path):
    output = interrupted("prior", cache, tmp_path / "out", 5)
    for name in (".tmp-checkpoint-6", "checkpoint-5", ".tmp-deleted-checkpoint-3"):
        (output / name / "prior").mkdir(parents=True)
        (output / name / "optimizer.safetensors").write_bytes(b"half of it")
    runs.train("prior", cache, output, *runs.STANDARD)
    assert_same_run("prior", output, finished["prior"])


def test_finished_run_given_again_trains_nothing(cache, finished, tmp_path):
    output = shutil.copytree(finished["prior"], tmp_path / "out")
    (output / "prior" / "diffusion_pytorch_model.safetensors").unlink()  # as if killed while exporting
    runs.train("prior", cache, output, *runs.STANDARD)
    assert_same_run("prior", output, finished["prior"])


def test_finished_run_is_continued_by_asking_for_more_steps(cache, tmp_path):
    flags = ("--train-batch-size", "3", "--cond-dropout", "0.2")
    whole = runs.train("prior", cache, tmp_path / "whole", *flags, "--max-train-steps", "5")
    parts = runs.train("prior", cache, tmp_path / "parts", *flags, "--max-train-steps", "2")
    runs.train("prior", cache, parts, *flags, "--max-train-steps", "5")
    assert_same_run("prior", parts, whole)


def test_named_checkpoint_of_another_folder_can_be_resumed(cache, finished, tmp_path):
    there = finished["prior"] / "checkpoint-3"
    output = runs.train("prior", cache, tmp_path / "out", *runs.STANDARD, "--resume-from-checkpoint", there)
    later = [line for line in runs.metrics(finished["prior"]) if line["step"] > 3]
    assert runs.metrics(output) == later
    assert runs.same_tensors(runs.weights(output / "prior"), runs.weights(finished["prior"] / "prior"))


def test_changes_since_the_checkpoint_are_said(cache, tmp_path):
    output = runs.train("prior", cache, tmp_path / "out", "--max-train-steps", "2")
    more = ("--max-train-steps", "3", "--learning-rate", "3e-4", "--train-batch-size", "2")
    ended = runs.program("prior", *runs.arguments(cache, output, *more))
    said = "\n".join(ended.lines)
    for change in ("learning_rate 0.0001 → 0.0003", "global_batch_size 4 → 2", "total_steps 2 → 3"):
        assert change in said


def test_oldest_checkpoints_beyond_the_limit_are_deleted(cache, tmp_path):
    flags = ("--max-train-steps", "5", "--checkpointing-steps", "1", "--checkpoints-total-limit", "2")
    output = runs.train("prior", cache, tmp_path / "out", *flags)
    assert [path.name for path in checkpoints(output)] == ["checkpoint-4", "checkpoint-5"]
    assert not list(output.glob(".*"))


def test_going_back_behind_newer_checkpoints_is_refused_and_branching_off_is_not(cache, tmp_path):
    flags = ("--checkpointing-steps", "1", "--max-train-steps", "3", "--checkpoints-total-limit", "2")
    output = runs.train("prior", cache, tmp_path / "out", *flags)
    back = ("--resume-from-checkpoint", "checkpoint-2")
    ended = runs.program("prior", *runs.arguments(cache, output, *flags, *back))
    assert ended.code == 2
    assert ended.lines[0].startswith(
        f"--resume-from-checkpoint: {output} holds newer ones, up to checkpoint-3"
    )
    branch = ("--resume-from-checkpoint", str(output / "checkpoint-2"))
    other = runs.train("prior", cache, tmp_path / "branch", *flags, *branch)
    last = "checkpoint-3/prior"
    assert runs.same_tensors(runs.weights(output / last), runs.weights(other / last))


def test_damaged_checkpoint_is_one_line(cache, finished, tmp_path):
    output = shutil.copytree(finished["prior"], tmp_path / "out")
    path = output / "checkpoint-6" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    before = (output / "run.json").read_bytes()
    ended = runs.program("prior", *runs.arguments(cache, output, *runs.STANDARD))
    assert ended.code == 1
    assert len(ended.lines) == 1
    assert ended.lines[0].startswith(f"--resume-from-checkpoint: {output / 'checkpoint-6'} is damaged: ")
    path = output / "checkpoint-6" / "prior" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(next(output.glob("image_encoder/*.safetensors")).read_bytes())  # of another model
    ended = runs.program("prior", *runs.arguments(cache, output, *runs.STANDARD))
    assert (ended.code, len(ended.lines)) == (1, 1), ended  # torch's own message has hundreds of lines
    (output / "checkpoint-6" / "state.json").write_text("{")
    for wanted in ("latest", "checkpoint-6"):
        flags = ("--resume-from-checkpoint", wanted)
        ended = runs.program("prior", *runs.arguments(cache, output, *runs.STANDARD, *flags))
        assert (ended.code, len(ended.lines)) == (1, 1), ended
    assert (output / "run.json").read_bytes() == before


def test_checkpoint_past_the_last_step_is_refused(cache, finished, tmp_path):
    output = shutil.copytree(finished["prior"], tmp_path / "out")
    ended = runs.program("prior", *runs.arguments(cache, output, *runs.STANDARD, "--max-train-steps", "4"))
    assert ended.code == 2
    assert ended.lines == [f"--max-train-steps: {output}/checkpoint-6 is at step 6, past the last of 4"]


@pytest.mark.parametrize("kind", runs.KINDS)
def test_nothing_is_pickled(kind, finished):
    found = {path.suffix for path in finished[kind].rglob("*") if path.is_file()}
    assert found <= {".safetensors", ".json", ".jsonl", ".png", ".md", ".txt"}
    names = {p.relative_to(finished[kind]).as_posix() for p in finished[kind].glob("checkpoint-6/**/*")}
    model = runs.TRAINED[kind]
    assert {name.removeprefix("checkpoint-6/") for name in names} == {
        *(model, f"{model}/config.json", f"{model}/diffusion_pytorch_model.safetensors"),
        *("optimizer.safetensors", "state.json"),
    }
