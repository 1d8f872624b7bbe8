"""`run.json`: what a run was asked to do and from what, written beside its weights when it starts."""

import json
import uuid
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from data_tools.cache.identity import digest
from data_tools.cache.mixture import Mixture, Reader
from data_tools.errors import UserError
from train.checkpoint import checkpoints
from train.lora import lora_record
from train.options import TrainOptions
from train.task import Task
from train.writing import writing

LIBRARIES = ("torch", "diffusers", "accelerate", "numpy", "safetensors")
MOVABLE = {
    *(
        "cache",
        "output_dir",
        "resume_from_checkpoint",
        "fresh",
        "dry_run",
        "preload",
        "prefetch_mib",
        "paranoid",
    ),
    *("report_to", "logging_dir", "tracker_project_name", "save", "push_to_hub", "hub_model_id"),
}
"Options that may differ between a run and its continuation without a word."
FIXED = {
    "order": "--order",
    "tail": "--tail",
    "group_by_length": "--group-by-length",
    "weights": "--cache",
    "noise_draws": "--noise-draws",
    "timestep_sampling": "--timestep-sampling",
}
"What decides which samples a batch holds, and how they are drawn → its flag: a continuation has the same."
BEFORE = {"noise_draws": 1, "timestep_sampling": "uniform"}
"What runs did that began before there was the option."
COMMANDS = {"prior": "train-prior", "unet": "train-decoder"}
"What a run's `trains` says → who trains it."
DERIVED = ("global_batch_size", "total_steps", "train_samples")
"Numbers on which the order of samples and the schedule depend; they also change with ranks and the cache."


def run_record(
    task: Task, reader: Reader, options: TrainOptions, resolved: dict[str, Any], resume: Path | None
) -> dict[str, Any]:
    """Options as given, numbers derived from them, the cache's identity, library versions."""
    own = resume is not None and resume.parent.resolve() == options.output_dir.resolve()
    before = _read(options.output_dir) if own else {}
    began_from = before.get("began_from") if own or resume is None else str(resume.resolve())
    given = {name: _plain(value) for name, value in asdict(options).items()}
    del given["hub_token"]  # a secret
    columns = {name: column.identity for name, column in reader.columns.items()}
    return {
        "trains": task.name,
        "run_id": before.get("run_id") or uuid.uuid4().hex,
        "began_from": began_from,
        "base_model": task.base.name,
        "base_identity": task.base.identity,
        "lora": lora_record(task.adapter),
        "options": given,
        **resolved,
        "cache": {
            "plans": _plans(reader),
            "samples": _counts(reader),
            "columns": columns,
            "identities": {name: digest(identity) for name, identity in columns.items()},
        },
        "ordering": _ordering(reader, options),
        "libraries": {name: version(name) for name in (*LIBRARIES, *_asked_for(options))},
    }


def _asked_for(options: TrainOptions) -> list[str]:
    """Libraries that flags have brought in."""
    used = {
        "peft": options.lora_rank is not None,
        "bitsandbytes": options.optimizer == "adamw-8bit",
        "xformers": options.attention == "xformers",
    }
    return [name for name, is_used in used.items() if is_used]


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def wanted_checkpoint(options: TrainOptions) -> str:
    """`latest` also where a run began from the checkpoint that is asked for, and has gone on since."""
    began_from = _read(options.output_dir).get("began_from")
    asked = Path(options.resume_from_checkpoint)
    same = began_from is not None and asked.resolve() == Path(began_from)
    return "latest" if same and checkpoints(options.output_dir) else options.resume_from_checkpoint


def check_output(output: Path, trains: str) -> None:
    """Raises `UserError` unless `output` is empty (but for hidden files) or holds a run like this one."""
    if not output.is_dir() or all(path.name.startswith(".") for path in output.iterdir()):
        return
    if _read(output).get("trains") != trains:
        raise UserError(
            f"--output-dir: {output} is not empty and not a run of {COMMANDS[trains]}; give another"
        )


def check_continuation(record: dict[str, Any], resume: Path, flag: str) -> None:
    """Raises `UserError` if the checkpoint's run began from another model or read another cache.

    Not what they are called counts, but what they hold: both may have moved. `flag` gives the base model.
    """
    before = _read(resume.parent)
    old, new = before.get("base_identity"), record["base_identity"]
    if old is not None and old != new:
        raise UserError(
            f"{flag}: {record['base_model']} ({new[:12]}) is not what {resume} began from, which was "
            f"{before['base_model']} ({old[:12]}); give that, or another --output-dir"
        )
    found = before.get("cache", {}).get("identities", {})
    wanted = record["cache"]["identities"]
    for name in sorted(found.keys() | wanted.keys()) if found else ():
        old, new = found.get(name, "nothing"), wanted.get(name, "nothing")
        if old != new:
            raise UserError(
                f"--cache: column {name} of {_caches(record)} is {new[:12]}, but {resume} was "
                f"trained on {old[:12]} of {_caches(before)}; give that, or another --output-dir"
            )
    old, new = (found.get("options", {}).get("optimizer", "adamw") for found in (before, record))
    if old != new:
        raise UserError(
            f"--optimizer: {new}, but {resume} was trained with {old}; give that, or another --output-dir"
        )
    _check_lora(before, record, resume)
    _check_ordering(before, record, resume)
    _check_samples(before, record, resume)


def _check_lora(before: dict[str, Any], record: dict[str, Any], resume: Path) -> None:
    """Raises `UserError` unless the same weights are trained: all, or a LoRA of the same shape and scale."""
    if not before:
        return
    old, new = before.get("lora"), record["lora"]
    if old is None and new is not None:
        raise UserError(
            f"--lora-rank: {new['rank']}, but {resume} is of a run that trains all weights; leave it out, or "
            "give another --output-dir"
        )
    if old is not None and new is None:
        raise UserError(
            f"--lora-rank: missing, but {resume} holds a LoRA of rank {old['rank']}; give that, or another "
            "--output-dir"
        )
    for name in ("rank", "alpha", "targets"):
        if old is not None and old[name] != new[name]:
            found, wanted = (", ".join(v) if isinstance(v, list) else v for v in (new[name], old[name]))
            raise UserError(
                f"--lora-{name}: {found}, but {resume} was trained with {wanted}; give that, or another "
                "--output-dir"
            )


def _check_samples(before: dict[str, Any], record: dict[str, Any], resume: Path) -> None:
    """Raises `UserError` unless the caches hold the samples that the run was trained on, in its order."""
    old, new = (found.get("cache", {}).get("plans") for found in (before, record))
    if old is not None and old != new:
        raise UserError(
            f"--cache: {_caches(record)} holds {_held(record)}, but {resume} was trained on "
            f"{_caches(before)} with {_held(before)}; give the same samples in the same order, or another "
            "--output-dir"
        )


def _held(record: dict[str, Any]) -> str:
    cache = record["cache"]
    pairs = zip(cache["samples"], cache["plans"])
    return " and ".join(f"{count} samples (plan {plan[:8]})" for count, plan in pairs)


def _check_ordering(before: dict[str, Any], record: dict[str, Any], resume: Path) -> None:
    """Raises `UserError` for what would give the steps to come other samples than the run would have had."""
    new = record["ordering"]
    old = {**BEFORE, **before["ordering"]} if "ordering" in before else {}
    for name, flag in FIXED.items():
        if name in old and old[name] != new[name]:
            found, wanted = _said(name, new[name], record), _said(name, old[name], before)
            raise UserError(
                f"{flag}: {found}, but {resume} was trained with {wanted}; give that, or another --output-dir"
            )


def _ordering(reader: Reader, options: TrainOptions) -> dict[str, Any]:
    weights = reader.weights if isinstance(reader, Mixture) else None
    return {
        "order": options.order_kind,
        "tail": options.tail,
        "group_by_length": options.group_by_length,
        "noise_draws": options.noise_draws,
        "timestep_sampling": options.timestep_sampling,
        "weights": weights or ["none"] * len(options.places),
    }


def _said(name: str, value: Any, record: dict[str, Any]) -> str:
    if name == "weights":
        return f"{_caches(record)} of weights {', '.join(map(str, value))}"
    return str(value).lower()


def _counts(reader: Reader) -> list[int]:
    """Samples of each cache."""
    return reader.counts.tolist() if isinstance(reader, Mixture) else [reader.num_samples]


def _plans(reader: Reader) -> list[str]:
    """Which samples each cache holds."""
    return reader.plan_hashes if isinstance(reader, Mixture) else [reader.plan_hash]


def _caches(record: dict[str, Any]) -> str:
    """All of them, as they were given; before there could be several it was one text."""
    given = record["options"]["cache"]
    return given if isinstance(given, str) else ", ".join(given)


def open_run(output: Path, record: dict[str, Any], resume: Path | None) -> None:
    """Write run.json; say what a resumed run does otherwise than the one it continues."""
    path = output / "run.json"
    if resume is not None:
        click.echo(f"resuming from {resume}", err=True)
        if before := _read(resume.parent):
            for line in _changes(before, record):
                click.echo(f"  changed since: {line}", err=True)
    temporary = path.with_name(".tmp-run.json")  # hidden: it does not make the folder somebody else's
    with writing(path):
        output.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        temporary.replace(path)


def _read(folder: Path) -> dict[str, Any]:
    """A folder's run.json; {} where there is none that can be read."""
    try:
        record = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = (
        {**{key: record.get(key) for key in DERIVED}, **record.get("options", {})} for record in (before, now)
    )
    keys = sorted(k for k in (old.keys() | new.keys()) - MOVABLE if old.get(k) != new.get(k))
    return [f"{key} {old.get(key)} → {new.get(key)}" for key in keys]
