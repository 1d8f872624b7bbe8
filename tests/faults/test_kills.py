"""Writers that race for every part and are killed at any moment: each part is there once, and right."""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from data_tools.cache import check
from data_tools.cache.manifest import PLAN, Cache, column_folder
from data_tools.cache.store import open_store
from data_tools.cli import cli
from tests.data_tools.caches import COLUMNS
from tests.faults.damage import load, read, same
from tests.faults.processes import Process, start, wait_until
from tests.faults.writer import FORMATS, PART_SIZE, fill
from tests.precompute.command import arguments, assert_same_records, inspect, precompute, records

WRITERS, KILLS = 4, 30
PLANNING = 5
"Kills before there is a plan to work on, if it is not made between two looks."
SAMPLES = 120
MOST_WAIT = 0.03
"Seconds from the moment that a kill waits for to the kill: a part takes about as long."
PATIENCE = 120.0
COMMITTED = re.compile(rf"^(?:{'|'.join(COLUMNS)}) (?:part-\d+|null)$", re.MULTILINE)
"A line that a writer prints."
Start = Callable[[], Process]


@pytest.mark.faults
@pytest.mark.parametrize("format", FORMATS)
def test_four_writers_killed_thirty_times_make_the_cache_of_one(tmp_path: Path, format: str) -> None:
    root, alone, logs = tmp_path / "cache", tmp_path / "alone", tmp_path / "logs"
    logs.mkdir()

    def begin() -> Process:
        log = logs / f"{len(list(logs.iterdir()))}.txt"
        return start(log, "tests.faults.writer", str(root), format, str(SAMPLES))

    fill(alone, format, SAMPLES)
    total = len(commits(alone))
    assert total == len(COLUMNS) * SAMPLES // PART_SIZE + 2
    seen = killed_often(root, begin, moments(root, total), writers=WRITERS)
    assert seen.items() <= commits(root).items(), "a commit record was replaced"
    printed = Counter(line for log in logs.iterdir() for line in COMMITTED.findall(log.read_text()))
    assert len(list(logs.iterdir())) == WRITERS + KILLS
    assert set(printed.values()) == {1}, "a part was committed twice"
    assert total - KILLS <= len(printed) <= total  # the killed may not have come to printing one
    assert len(commits(root)) == total
    assert same(read(root), read(alone))
    assert_nothing_else_counts(root, alone)
    assert_only_leftovers_go(root)
    assert same(read(root), read(alone))


def moments(root: Path, total: int) -> Iterator[Callable[[], bool]]:
    """What each kill waits for: sample tables, then so many commits, evenly over all of them."""
    for number in range(PLANNING):
        yield lambda number=number: len(list(root.glob("samples/*"))) > 10 * number
    for goal in np.linspace(0, total - 1, KILLS - PLANNING).astype(int).tolist():
        yield lambda goal=goal: len(commits(root)) >= goal


def killed_often(
    root: Path, begin: Start, moments: Iterator[Callable[[], bool]], *, writers: int
) -> dict[str, bytes]:
    """At each moment and a random while kill a writer and start another; all commits seen meanwhile."""
    rng, seen = np.random.default_rng(0), dict[str, bytes]()
    running = [begin() for _ in range(writers)]
    try:
        for number, moment in enumerate(moments):
            wait_until(moment, PATIENCE, f"moment {number}")
            time.sleep(rng.uniform(0, MOST_WAIT))
            victim = running.pop(int(rng.integers(writers)))
            victim.kill()
            found = commits(root)
            assert seen.items() <= found.items(), "a commit record was replaced"
            seen = found
            running.append(begin())
        for process in running:
            process.wait(PATIENCE)
    finally:
        for process in running:
            process.child.kill()
            process.child.wait()
    return seen


def commits(root: Path) -> dict[str, bytes]:
    found = root.glob("columns/*/*/commits/[!.]*")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def named(root: Path) -> set[str]:
    """Every file that plan, declarations, commit records and generations name, and these too."""
    cache = Cache.open(open_store(root))
    names = {"cache.json", PLAN, *(part.table for part in cache.plan())}
    for name in cache.column_names():
        column = cache.column(name)
        assert column is not None
        folder = column_folder(column)
        names.add(f"columns/{name}/column.json")
        for part, commit in cache.commits(column).items():
            names |= {f"{folder}/commits/{part}.json", *(item.name for item in commit.objects)}
        newest = cache.store.names(f"{folder}/generations")[-2:]  # the one before may have readers
        names |= {f"{folder}/generations/{name}" for name in newest}
    return names


def assert_nothing_else_counts(root: Path, alone: Path) -> None:
    """`inspect` and `verify` find what there is in a cache that one writer made, whatever else lies there."""
    found, wanted = inspect(root), inspect(alone)
    for report in (found, wanted):
        for column in report["columns"].values():
            column.pop("encode_samples_per_second", None)
    assert found == wanted
    verified = [check.verify(Cache.open(open_store(place)), full=True) for place in (root, alone)]
    assert verified[0] == verified[1]
    assert (verified[0].faults, verified[0].missing) == ([], 0)


def assert_only_leftovers_go(root: Path) -> None:
    """There are leftovers of both kinds; `gc` removes them when they are old, and nothing that is named."""
    before, kept = load(root), named(root)
    leftovers = before.keys() - kept
    assert kept <= before.keys()
    assert any("/.tmp-" in name for name in leftovers), "no kill came while a file was written"
    assert any("/.tmp-" not in name and "/parts/" in name for name in leftovers), "no attempt was lost"
    invoke = CliRunner().invoke
    invoke(cli, ["gc", str(root)], catch_exceptions=False)
    assert load(root) == before, "what was just written may still be needed"
    then = time.time() - 48 * 3600
    for path in root.rglob("*"):
        os.utime(path, (then, then))
    assert invoke(cli, ["gc", str(root)], catch_exceptions=False).exit_code == 0
    assert load(root) == {name: before[name] for name in kept}
    assert not [path for path in root.rglob("*.zarr") if not any(path.iterdir())]


@pytest.mark.faults
@pytest.mark.parametrize("format", FORMATS)
def test_precompute_killed_six_times_makes_the_cache_of_one_run(
    pictures: Path, pocket: Path, tmp_path: Path, format: str
) -> None:
    flags = ("--dtype", "fp32", "--batch-size", "1", "--part-size", "2", "--workers", "1", "--format", format)
    root, alone, logs = tmp_path / "cache", tmp_path / "alone", tmp_path / "logs"
    logs.mkdir()

    def begin() -> Process:
        log = logs / f"{len(list(logs.iterdir()))}.txt"
        return start(log, "precompute", *arguments(pictures, root, pocket, *flags))

    precompute(pictures, alone, pocket, *flags)
    total = len(commits(alone))
    goals = np.linspace(1, total - 6, 6).astype(int).tolist()
    moments = (lambda goal=goal: len(commits(root)) >= goal for goal in goals)
    seen = killed_often(root, begin, iter(moments), writers=2)
    assert seen.items() <= commits(root).items(), "a commit record was replaced"
    assert len(commits(root)) == total
    assert_same_records(records(root), records(alone))
    assert_nothing_else_counts(root, alone)
    assert any("= 22 cached + 2 rejected" in log.read_text() for log in logs.iterdir())
