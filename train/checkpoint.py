"""Checkpoints: safetensors and JSON, nothing pickled, whole or not there at all.

    checkpoint-500/
        prior/ or unet/           the weights, in diffusers' layout
        optimizer.safetensors     <parameter>/<state>, for example `proj_in.weight/exp_avg`
        state.json                step, GradScaler

Noise, order and learning rate are functions of the step, so there is no random state to keep.
"""

import json
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from data_tools.errors import DataFault, UserError
from data_tools.models import first_line
from train.ema import Ema
from train.writing import writing


class Saveable(Protocol):
    """A diffusers model: what both trainers train."""

    def save_pretrained(self, save_directory: str | Path) -> None: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass(frozen=True)
class Training:
    """All that a step changes."""

    name: str
    "Folder of the weights: `prior` or `unet`."
    model: Saveable
    optimizer: torch.optim.Optimizer
    parameters: list[tuple[str, nn.Parameter]]
    "In the optimizer's order."
    scaler: Any
    "torch.amp.GradScaler under fp16, else None."
    ema: Ema | None = None


def save(folder: Path, step: int, training: Training, *, keep: int | None) -> Path:
    """Write `checkpoint-<step>` and delete older ones beyond `keep`, which is done last.

    Raises `DataFault`, and leaves the older ones, if it cannot be written.
    """
    target = folder / f"checkpoint-{step}"
    temporary = folder / f".tmp-checkpoint-{step}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with writing(target):
            _write(temporary, step, training)
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if keep is not None:
        for old in checkpoints(folder)[:-keep]:
            _delete(old)
    return target


def _write(folder: Path, step: int, training: Training) -> None:
    folder.mkdir(parents=True)
    training.model.save_pretrained(folder / training.name)
    state = training.optimizer.state
    tensors = {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in training.parameters
        for key, value in state.get(parameter, {}).items()
    }
    save_file(tensors, folder / "optimizer.safetensors")
    scaler = training.scaler.state_dict() if training.scaler is not None else None
    (folder / "state.json").write_text(json.dumps({"step": step, "scaler": scaler}, indent=1))
    _sync(folder)


def _sync(folder: Path) -> None:
    """Have everything in a folder on disk before it gets its name."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _delete(checkpoint: Path) -> None:
    """At no moment does a checkpoint's name stand for half of one."""
    doomed = checkpoint.with_name(f".tmp-deleted-{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def largest(training: Training) -> float:
    """The largest absolute value among weights and optimizer state, NaN if there is one; a host sync."""
    weights = [parameter.detach() for _, parameter in training.parameters]
    state = [value for values in training.optimizer.state.values() for value in values.values()]
    return float(nn.utils.get_total_norm([*weights, *state], norm_type=math.inf))


def load(folder: Path, training: Training) -> int:
    """Put a checkpoint's content into `training`; returns its step. Raises `DataFault` if it is damaged."""
    try:
        weights: dict[str, torch.Tensor] = {}
        for file in sorted((folder / training.name).glob("*.safetensors")):
            weights.update(load_file(file))
        training.model.load_state_dict(weights)
        tensors = load_file(folder / "optimizer.safetensors")
        record = json.loads((folder / "state.json").read_text())
        step, scaler = int(record["step"]), record["scaler"]
        numbers = {name: number for number, (name, _) in enumerate(training.parameters)}
        state: dict[int, dict[str, torch.Tensor]] = {}
        for path, tensor in tensors.items():
            name, key = path.rsplit("/", 1)
            state.setdefault(numbers[name], {})[key] = tensor
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as err:
        raise DataFault(f"--resume-from-checkpoint: {folder} is damaged: {first_line(err)}") from None
    groups = training.optimizer.state_dict()["param_groups"]
    training.optimizer.load_state_dict({"state": state, "param_groups": groups})
    if training.scaler is not None and scaler is not None:
        training.scaler.load_state_dict(scaler)
    return step


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted((p for p in found if (p / "state.json").is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def find(folder: Path, wanted: str) -> Path | None:
    """The checkpoint that `--resume-from-checkpoint` names; None for `latest` where there is none yet."""
    if wanted == "latest":
        return next(reversed(checkpoints(folder)), None)
    path = next((p for p in (Path(wanted), folder / wanted) if (p / "state.json").is_file()), None)
    if path is None:
        raise UserError(f"--resume-from-checkpoint: {wanted} is not a checkpoint (it has no state.json)")
    try:
        step = int(json.loads((path / "state.json").read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataFault(f"--resume-from-checkpoint: {path} is damaged: {first_line(err)}") from None
    newer = [p for p in checkpoints(folder) if step_of(p) > step]
    if newer:
        raise UserError(
            f"--resume-from-checkpoint: {folder} holds newer ones, up to {newer[-1].name}; "
            "to branch off, give another --output-dir and this checkpoint's path"
        )
    return path


def outlook(folder: Path, wanted: str) -> str:
    """What the same command would do if it were given again now, for who has just stopped it."""
    last = next(reversed(checkpoints(folder)), None)
    if last is None:
        there = f"from {wanted}" if wanted != "latest" else "from the start (no checkpoint was written yet)"
        return f"the same command begins again {there}"
    if wanted == "latest":
        return f"the same command continues from {last}"
    return f"the same command with --resume-from-checkpoint latest continues from {last}"
