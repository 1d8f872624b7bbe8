"""Run the trainers as a user does, and read what they leave behind."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from data_tools.cache.mixture import Reader
from train import decoder, prior
from train.options import TrainOptions
from train.task import Task

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("prior", "decoder")
TRAINED = {"prior": "prior", "decoder": "unet"}
"Folder of the trained weights."
COMMANDS: dict[str, click.Command] = {"prior": prior.train_prior, "decoder": decoder.train_decoder}
MAINS = {"prior": prior.main, "decoder": decoder.main}
TIMES = {"samples_per_second", "data_wait", "memory_gib"}
"What a line of metrics may hold that differs between equal runs."

# Two rounds of two samples, everything switched on that has a state or a schedule.
STANDARD = (
    *("--train-batch-size", "2", "--gradient-accumulation-steps", "2", "--max-train-steps", "6"),
    *("--checkpointing-steps", "3", "--logging-steps", "1"),
    *("--lr-scheduler", "cosine", "--lr-warmup-steps", "2", "--snr-gamma", "5"),
    *("--validation-fraction", "0.2", "--validation-steps", "2", "--adam-weight-decay", "0.01"),
)


def script(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a program text in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@dataclass(frozen=True)
class Ended:
    code: int
    stderr: str
    stdout: str

    @property
    def lines(self) -> list[str]:
        """Of stderr, without progress bars."""
        lines = [line.rsplit("\r", 1)[-1] for line in self.stderr.split("\n")]
        return [line for line in lines if line.strip() and "it/s" not in line and "s/it" not in line]


def arguments(cache: Path | str | list[Path | str], output: Path, *flags: str) -> list[str]:
    """The command line of most tests: without validation, one line of metrics a step. Later flags win."""
    caches = [f"--cache={place}" for place in (cache if isinstance(cache, list) else [cache])]
    small = ["--train-batch-size", "4", "--max-train-steps", "3"]
    quiet = ["--validation-fraction", "0", "--logging-steps", "1", "--report-to", "none"]
    return [*caches, "--output-dir", str(output), *small, *quiet, *map(str, flags)]


def train(kind: str, cache: Path | str | list[Path | str], output: Path, *flags: str) -> Path:
    """Run a trainer in this process; raises what it raises. Returns `output`."""
    forget_accelerator()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        COMMANDS[kind].main(arguments(cache, output, *flags), standalone_mode=False)
    return output


def program(kind: str, *command_line: str) -> Ended:
    """Run a trainer's entry point in this process, to its exit code and its last words."""
    forget_accelerator()
    stderr, stdout = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stderr(stderr),
        contextlib.redirect_stdout(stdout),
        mock.patch.object(sys, "argv", [f"train-{kind}", *map(str, command_line)]),
    ):
        try:
            MAINS[kind]()
        except SystemExit as end:
            return Ended(int(end.code or 0), stderr.getvalue(), stdout.getvalue())
    raise AssertionError("a program ends with an exit code")


def prepared(kind: str, cache: Path, output: Path, *flags: str) -> tuple[Task, Reader, TrainOptions]:
    """Task, reader and options as the command makes them, before the loop starts."""
    forget_accelerator()
    params = COMMANDS[kind].make_context(kind, arguments(cache, output, *flags)).params
    options = TrainOptions(**params)
    task, reader = {"prior": prior, "decoder": decoder}[kind]._prepare(options)
    return task, reader, options


def forget_accelerator() -> None:
    """Accelerate keeps its state for the whole process; a new process has none."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def environment() -> dict[str, str]:
    """Of a child process: one thread, no network, this tree's code."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
    }


def metrics(output: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without timings."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def series(output: Path, key: str) -> dict[int, float]:
    """Step → value, of the lines that have it."""
    return {line["step"]: line[key] for line in metrics(output) if key in line}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in a folder of safetensors."""
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all tensors together."""
    assert first.keys() == second.keys()
    return float(torch.stack([(first[name] - second[name]).double().norm() for name in first]).norm())


def copy_model(source: Path, target: Path) -> Path:
    """A repository of one's own, to be changed."""
    return Path(shutil.copytree(source, target))


def accelerate_launch(*command_line: str) -> None:
    """`accelerate launch` on the CPU, to a good end."""
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *command_line],
        cwd=ROOT,
        env={**environment(), "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
