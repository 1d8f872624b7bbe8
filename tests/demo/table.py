"""The figures that `make demo` ends with, all read from what the run left behind or just measured."""

import json
from pathlib import Path
from statistics import median

from data_tools.cache import report
from data_tools.cache.manifest import Cache
from data_tools.cache.store import LocalStore
from tests.demo.speedup import Speedup
from train.metrics import read_metrics


def figures(cache: Path, prior: Path, decoder: Path, speedups: dict[str, Speedup]) -> str:
    """A short table as text."""
    found = report.inspect(Cache.open(LocalStore(cache)))
    lines = ["", "samples       " + report.count_line(found).replace(" samples found", " found")]
    for name, column in found["columns"].items():
        size = report.human_bytes(sum(column["field_bytes"].values()))
        rate = column["encode_samples_per_second"]
        encoded = "" if rate is None else f", encoded at {rate:.0f} samples/s"  # None: too quick to time
        lines.append(f"{name:<14}{size:>9}{encoded}")
    lines += [training_line(f"train-{name}", run) for name, run in (("prior", prior), ("decoder", decoder))]
    for name, speed in speedups.items():
        lines.append(
            f"{name + ' step':<14}{speed.cached * 1e3:.0f} ms from the cache, {speed.online * 1e3:.0f} ms "
            f"with the encoders in it: {speed.ratio:.1f}x (batch {speed.batch_size})"
        )
    return "\n".join(lines)


def training_line(name: str, run: Path) -> str:
    """Speed and losses of one run, as far as it measured them."""
    metrics = read_metrics(run / "metrics.jsonl")
    batch_size = json.loads((run / "run.json").read_text())["global_batch_size"]
    rates = [line["samples_per_second"] for line in metrics if "samples_per_second" in line]
    losses = [line["validation_loss"] for line in metrics if "validation_loss" in line]
    found = [f"{median(rates) / batch_size:.1f} steps/s of {batch_size}"] if rates else []
    found += [f"validation loss {losses[0]:.3f} → {losses[-1]:.3f}"] if losses else []
    return f"{name:<16}" + (", ".join(found) or "no metrics")
