"""`run.json`: what a run was asked to do and from what, written beside its weights when it starts."""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from data_tools.cache.identity import digest
from data_tools.cache.manifest import PLAN
from data_tools.cache.reader import CacheReader
from train.options import TrainOptions
from train.task import Task

LIBRARIES = ("torch", "diffusers", "accelerate", "numpy")
MOVABLE = {"cache", "output_dir", "resume_from_checkpoint", "dry_run"}
"Options that may differ between a run and its continuation without a word."
DERIVED = ("global_batch_size", "total_steps", "train_samples")
"Numbers on which the order of samples and the schedule depend; they also change with ranks and the cache."


def run_record(
    task: Task, reader: CacheReader, options: TrainOptions, resolved: dict[str, Any]
) -> dict[str, Any]:
    """Options as given, numbers derived from them, the cache's identity, library versions."""
    given = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(options).items()}
    columns = {name: column.identity for name, column in reader.columns.items()}
    return {
        "trains": task.name,
        "base_model": task.base,
        "options": given,
        **resolved,
        "cache": {
            "plan": PLAN,
            "columns": columns,
            "identities": {name: digest(identity) for name, identity in columns.items()},
        },
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def open_run(output: Path, record: dict[str, Any], resume: Path | None) -> None:
    """Write run.json; say what a resumed run does otherwise than the one it continues."""
    path = output / "run.json"
    if resume is not None:
        click.echo(f"resuming from {resume}", err=True)
        if path.is_file():
            for line in _changes(json.loads(path.read_text()), record):
                click.echo(f"  changed since: {line}", err=True)
    output.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = (
        {
            **{key: record.get(key) for key in DERIVED},
            **record.get("options", {}),
            **record.get("cache", {}).get("identities", {}),
        }
        for record in (before, now)
    )
    keys = sorted(k for k in (old.keys() | new.keys()) - MOVABLE if old.get(k) != new.get(k))
    return [f"{key} {old.get(key)} → {new.get(key)}" for key in keys]
