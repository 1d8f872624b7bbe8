"""Checkpoints: safetensors and JSON, nothing pickled, whole or not there at all.

    checkpoint-500/
        prior/ or unet/           the weights, in diffusers' layout
        prior_ema/ or unet_ema/   their running average, if the run keeps one, in the same layout
        optimizer.safetensors     <parameter>/<state>, for example `proj_in.weight/exp_avg`
        state.json                step, GradScaler, sums since the last line of metrics

Noise, order and learning rate are functions of the step, so there is no random state to keep. Nor does it
show how the run was parallelised: all tensors are whole, under the names that they have in one process.

All ranks save and load together. Where weights are sharded the main process holds all of them in its memory
for a moment, then all of the optimizer's state: 8 bytes a parameter with AdamW.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_tools.errors import DataFault, UserError
from data_tools.models import first_line
from train.ema import Ema
from train.sharding import class_of, gathered, is_sharded, like, local, main_writes, over_ranks
from train.writing import writing
from train.zero import Engine


class Saveable(Protocol):
    """A diffusers model, or the LoRA on it: what both trainers train."""

    def save_pretrained(self, folder: Path, /) -> None: ...

    def load_state_dict(self, weights: Any, /) -> Any: ...

    def state_dict(self, *, keep_vars: bool) -> dict[str, Tensor]: ...


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
    engine: Engine | None = None
    "DeepSpeed's, which has parts of the optimizer's state."


@dataclass(frozen=True)
class Saved:
    """The weights in a checkpoint's folder, for who wants to save them elsewhere: always whole."""

    folder: Path

    def save_pretrained(self, folder: str | Path, /) -> None:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)


def save(
    folder: Path, step: int, training: Training, *, keep: int | None, meter: dict[str, float] | None = None
) -> Path:
    """Write `checkpoint-<step>` and delete older ones beyond `keep`, which is done last. All ranks call this.

    Raises `DataFault`, and leaves the older ones, if it cannot be written; ranks but the main one then end.
    """
    target = folder / f"checkpoint-{step}"
    temporary = folder / f".tmp-checkpoint-{step}"
    try:
        with main_writes() as main, writing(target):
            if main:
                for left in folder.glob(".tmp-*checkpoint-*"):  # by runs that were killed
                    shutil.rmtree(left, ignore_errors=True)
                temporary.mkdir(parents=True)
        _write(temporary, {"step": step, "meter": meter}, training, target)
        with main_writes() as main, writing(target):
            if main:
                _sync(temporary)
                temporary.rename(target)
    finally:
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
    if keep is not None and main:
        for old in checkpoints(folder)[:-keep]:
            _delete(old)
    return target


def _write(folder: Path, record: dict[str, Any], training: Training, target: Path) -> None:
    """One part after the other, so that only one of them is in memory."""
    own = training.model.state_dict(keep_vars=True)
    sharded = is_sharded(own.values())
    for name, tensors in {training.name: own, f"{training.name}_ema": _averaged(training, own)}.items():
        weights = gathered(tensors.items()) if sharded or tensors is not own else {}
        with main_writes() as main, writing(target):
            if main and tensors is own and not sharded:
                training.model.save_pretrained(folder / name)
            elif main and tensors:
                _save_weights(training.model, weights, folder / name)
    tensors = gathered(_state(training))
    with main_writes() as main, writing(target):
        if main:
            save_file(_apart(tensors), folder / "optimizer.safetensors")
            scaler = training.scaler.state_dict() if training.scaler is not None else None
            (folder / "state.json").write_text(json.dumps({**record, "scaler": scaler}, indent=1))


def _state(training: Training) -> Iterator[tuple[str, Tensor]]:
    """Of the optimizer, by parameter."""
    if training.engine is not None:
        yield from training.engine.state(training.parameters)
        return
    for name, parameter in training.parameters:
        for key, value in training.optimizer.state.get(parameter, {}).items():
            yield f"{name}/{key}", torch.as_tensor(value)  # 8-bit Adam counts its steps in an int


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without two that share memory, which safetensors refuses: 8-bit Adam has one table of levels."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def _averaged(training: Training, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """`own`, the trained weights replaced by their averages; {} without any."""
    if training.ema is None:
        return {}
    averages = {id(p): mean for (_, p), mean in zip(training.parameters, training.ema.shadow, strict=True)}
    return {name: averages.get(id(tensor), tensor) for name, tensor in own.items()}


def _save_weights(model: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """Write `weights` as `model.save_pretrained` writes its own: the same files for the same weights."""
    if isinstance(model, nn.Module):
        with torch.device("meta"):
            empty = class_of(model).from_config(model.config)
        empty.load_state_dict(weights, assign=True)
        empty.save_pretrained(folder)
    else:
        model.write(folder, weights)


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
    """The largest absolute value among weights and optimizer state, NaN if there is one; a host sync.

    All ranks call this.
    """
    weights = [parameter.detach() for _, parameter in training.parameters]
    state = [value for values in training.optimizer.state.values() for value in values.values()]
    parts = [local(torch.as_tensor(value)) for value in (*weights, *state)]
    real = [part for part in parts if part.numel() and part.is_floating_point()]
    norm = nn.utils.get_total_norm(real, norm_type=math.inf)
    return float(over_ranks(norm).max())


def load(folder: Path, training: Training) -> int:
    """Put a checkpoint's content into `training`; returns its step. All ranks call this.

    An average that the checkpoint does not have begins with its weights. Raises `DataFault` if it is damaged.
    """
    own = training.model.state_dict(keep_vars=True)
    try:
        weights = _load_weights(folder / training.name)
        training.model.load_state_dict({n: like(tensor, own.get(n)) for n, tensor in weights.items()})
        if training.ema is not None:
            with_average = (folder / f"{training.name}_ema").is_dir()
            averages = _load_weights(folder / f"{training.name}_ema") if with_average else weights
            for name, mean in _averaged(training, own).items():
                if own[name].requires_grad:
                    mean.copy_(like(averages[name], mean))
        tensors = load_file(folder / "optimizer.safetensors")
        if training.engine is not None:
            training.engine.load(training.parameters, tensors)
            tensors = {}
        record = json.loads((folder / "state.json").read_text())
        step, scaler = int(record["step"]), record["scaler"]
        numbers = {name: number for number, (name, _) in enumerate(training.parameters)}
        parameters = dict(training.parameters)
        state: dict[int, dict[str, Tensor | int]] = {}
        for path, tensor in tensors.items():
            name, key = path.rsplit("/", 1)
            alike = tensor.shape == parameters[name].shape  # others, like Adam's `step`, are not sharded
            value = like(tensor, parameters[name]) if alike else tensor
            counts = value.ndim == 0 and not value.is_floating_point()
            state.setdefault(numbers[name], {})[key] = int(value) if counts else value
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as err:
        raise DataFault(f"--resume-from-checkpoint: {folder} is damaged: {first_line(err)}") from None
    if training.engine is None:
        groups = training.optimizer.state_dict()["param_groups"]
        training.optimizer.load_state_dict({"state": state, "param_groups": groups})
    if training.scaler is not None and scaler is not None:
        training.scaler.load_state_dict(scaler)
    return step


def meter_state(folder: Path) -> dict[str, float]:
    """The sums that were saved with a checkpoint that `load` has found sound; {} without any."""
    return json.loads((folder / "state.json").read_text()).get("meter") or {}


def _load_weights(folder: Path) -> dict[str, Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


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
    return f"the same command continues from {last}"
