"""The command `train-prior` as a user gives it, and what its lines of metrics say of its speed."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch

from tests.benchmarks.train_prior_sides import Cached, Round, seconds
from tests.train import runs


def flags(repo: Path, batch_size: int, *more: object) -> list[str]:
    """Of a training run without validation."""
    given = ("--prior-model", repo, "--train-batch-size", batch_size, "--validation-fraction", 0, *more)
    return [str(word) for word in given]


def rates(output: Path) -> list[float]:
    """samples/s of the metrics' lines but the first, which has the warm-up in it."""
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [line["samples_per_second"] for line in found if "samples_per_second" in line][1:]


def run(cache: Path, output: Path, given: Sequence[str], updates: int, lines: int) -> float:
    """samples/s of a run in this process: mean over `lines` lines of `updates` each, after a first one."""
    length = ("--max-train-steps", str(updates * (lines + 1)), "--logging-steps", str(updates))
    try:
        runs.train("prior", cache, output, *given, *length, "--checkpointing-steps", "1000000")
        found = rates(output)
    finally:
        shutil.rmtree(output, ignore_errors=True)
    assert len(found) == lines, found
    return mean(found)


def bare(side: Cached, preloaded: Sequence[Sequence[Round]]) -> float:
    """samples/s of updates on batches in memory."""
    taken = seconds(side.device, lambda step: side.update(step, preloaded[step]), range(len(preloaded)))
    return len(preloaded) * side.batches.share.global_batch_size / taken


def compare(
    cache: Path, repo: Path, batch_size: int, rounds: int, *more: object
) -> list[tuple[float, float]]:
    """(samples/s of the loop, of its bare update) of each round; two runs of the latter around the former."""
    threads = torch.get_num_threads()
    given = flags(repo, batch_size, *more)
    side = Cached.open(cache, repo, *given[2:])
    preloaded = side.preload(0, side.updates_an_epoch)
    side.update(0, preloaded[0])  # a warm-up
    found = []
    for _ in range(rounds):
        before = bare(side, preloaded)
        loop = run(cache, cache.with_name("run"), given, len(preloaded), lines=2)
        torch.set_num_threads(threads)
        found.append((loop, 2 / (1 / before + 1 / bare(side, preloaded))))
    return found
