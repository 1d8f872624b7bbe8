"""The two sides of `side_by_side`: what each is called with, and how each is run and read."""

import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.errors import DataFault, UserError

Numbers = NDArray[np.float64]

ROOT = Path(__file__).resolve().parents[2]
TAG = "train_loss"
"What the scripts call the loss of an update in their logs."


@dataclass(frozen=True)
class Setting:
    """What both sides are given."""

    updates: int
    batch_size: int
    learning_rate: float
    resolution: int = 128
    "Of the decoder's pictures, in px; the prior sees none."


@dataclass(frozen=True)
class Ran:
    """One side, once."""

    losses: Numbers
    "(U,) of each update."
    step_seconds: Numbers
    "(U - 1,) from the end of one update to the end of the next, batches and logging included."
    seconds: float
    "The whole command."
    cpu_seconds: float
    "Of all its threads, which other people's work on the machine changes little."


@dataclass(frozen=True)
class Objective:
    """Which trainer, and what makes it take the steps of its reference."""

    name: str
    module: str
    command: str
    column: str
    reference: tuple[str, ...]
    "Flags that switch off what the script has not."

    def columns(self, resolution: int) -> list[str]:
        return ["image", self.column.format(resolution=resolution)]

    def run_script(self, script: Path, folder: Path, setting: Setting, seed: int) -> Ran:
        """Raises `DataFault` with its last line if it fails or logs too few losses."""
        output = folder / f"{self.name}-script-{seed}"
        shutil.rmtree(output, ignore_errors=True)
        words = {
            "pretrained_prior_model_name_or_path": folder / "models" / "prior",
            "pretrained_decoder_model_name_or_path": folder / "models" / "decoder",
            "train_data_dir": folder / "data",
            "cache_dir": folder / "hf",
            "output_dir": output,
            "resolution": setting.resolution,
            **_shared(setting, seed),
        }
        spent = _run([str(script), *_flags(words)], output.with_suffix(".log"))
        return Ran(*read_events(output / "logs", setting.updates), *spent)

    def run_trainer(self, cache: Path, folder: Path, setting: Setting, seed: int) -> Ran:
        output = folder / f"{self.name}-trainer-{seed}"
        shutil.rmtree(output, ignore_errors=True)
        words = {
            "cache": cache,
            "output_dir": output,
            "logging_steps": 1,
            "validation_fraction": 0,
            **_shared(setting, seed),
        }
        command_line = ["-m", self.module, *_flags(words), *self.reference]
        spent = _run(command_line, output.with_suffix(".log"))
        return Ran(*read_metrics(output / "metrics.jsonl", setting.batch_size), *spent)


OBJECTIVES = {
    "prior": Objective(
        "prior",
        "train.prior",
        "train-prior",
        "text",
        ("--cond-dropout", "0", "--noise-draws", "1", "--no-group-by-length"),
    )
}


@dataclass
class Sides:
    """What came of it."""

    objective: Objective
    setting: Setting
    filled: float | None
    "Seconds of `precompute`; None where the cache was there."
    script: list[Ran] = field(default_factory=list)
    trainer: list[Ran] = field(default_factory=list)


def _shared(setting: Setting, seed: int) -> dict[str, object]:
    """The flags that both take, AdamW's at the scripts' defaults."""
    return {
        "train_batch_size": setting.batch_size,
        "max_train_steps": setting.updates,
        "learning_rate": setting.learning_rate,
        "lr_scheduler": "constant",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_weight_decay": 0.0,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "mixed_precision": "no",
        "checkpointing_steps": setting.updates,
        "seed": seed,
    }


def _flags(words: dict[str, object]) -> list[str]:
    return [part for name, value in words.items() for part in (f"--{name}", str(value))]


def _run(command_line: list[str], log: Path) -> tuple[float, float]:
    """Seconds and CPU seconds of a Python process without network, its words in `log`."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    before, started = _cpu_seconds(), time.perf_counter()
    with log.open("w") as file:
        done = subprocess.run([sys.executable, *command_line], env=environment, stdout=file, stderr=file)
    if done.returncode:
        last = log.read_text().strip().splitlines()[-1:]
        raise DataFault(f"{log}: {command_line[0]} ended with {done.returncode}: {' '.join(last)}")
    return time.perf_counter() - started, _cpu_seconds() - before


def _cpu_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_events(logs: Path, updates: int) -> tuple[Numbers, Numbers]:
    """The losses (U,) in a TensorBoard folder, and the times from one to the next, by its file: (U - 1,)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for path in sorted(logs.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        if TAG in events.Tags()["scalars"]:
            lines = events.Scalars(TAG)
            if len(lines) != updates:
                raise DataFault(f"{path}: {len(lines)} losses, wanted {updates}")
            return np.array([line.value for line in lines]), np.diff([line.wall_time for line in lines])
    raise DataFault(f"{logs}: no TensorBoard file with {TAG}")


def read_metrics(path: Path, batch_size: int) -> tuple[Numbers, Numbers]:
    """The same of a run's metrics.jsonl, which has a line for each update."""
    lines = [line for line in map(json.loads, path.read_text().splitlines()) if "loss" in line]
    times = np.array([batch_size / line["samples_per_second"] for line in lines])
    return np.array([line["loss"] for line in lines]), times[1:]


def require_packages() -> None:
    """Raises `UserError` for what the scripts import and this project does without."""
    for name in ("datasets", "tensorboard"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name}: not installed, but diffusers' script needs it; pip install {name}")
