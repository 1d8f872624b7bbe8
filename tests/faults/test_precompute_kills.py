"""`python -m precompute`, killed at any moment or started twice: the cache of one undisturbed run."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data_tools.cache.generation import NUMBER
from data_tools.cache.manifest import Cache
from data_tools.cache.store import open_store
from data_tools.cache.verify import load_index
from tests.faults.processes import start, wait_until
from tests.faults.test_kills import PATIENCE, assert_nothing_else_counts, commits
from tests.precompute.command import arguments, assert_same_records, precompute, records
from tests.precompute.pictures import write_pictures

SAMPLES, PART_SIZE = 60, 2
PLANNING, ENCODING, PUBLISHING = 4, 13, 3
"Kills while sample tables are written, between the first commit and the last, and after the last."
MOST_WAIT = 0.05
"Seconds from the moment that a kill waits for to the kill."
TABLES = SAMPLES // PART_SIZE
COMMITS = 3 * TABLES + 2
FLAGS = ("--dtype", "fp32", "--part-size", str(PART_SIZE), "--batch-size", "2")
Moment = Callable[[], bool]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pictures"
    write_pictures(folder, SAMPLES)
    return folder


@pytest.fixture(scope="module")
def alone(data: Path, pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by one run that nothing disturbed."""
    root = tmp_path_factory.mktemp("caches") / "alone"
    precompute(data, root, pocket, *FLAGS)
    assert len(commits(root)) == COMMITS
    return root


def payload(root: Path) -> dict[str, bytes]:
    """Every file that a commit record names, and what that says of it, without the name of the attempt.

    Of an extent index, which holds that name, all the rest.
    """
    cache, found = Cache.open(open_store(root)), dict[str, bytes]()
    for name in cache.column_names():
        column = cache.column(name)
        assert column is not None
        for part, commit in cache.commits(column).items():
            index = load_index(cache.store, commit)
            values = {"sample": index.sample_index, "key": index.key_hash, "row": index.row_offsets}
            for field, about in index.fields.items():
                about = vars(about)
                values |= {f"{field} {key}": about[key] for key in ("offset", "shape", "crc32c")}
            found |= {f"{name} {part} {key}": value.tobytes() for key, value in values.items()}
            objects = [item for item in commit.objects if item.name != commit.index]
            for item in objects:
                found[item.name.replace(commit.attempt, "*")] = cache.store.read(item.name)
            said = {**vars(commit), "objects": objects, "encode_seconds": 0.0}
            found[f"{name} {part}"] = json.dumps(said, default=vars).replace(commit.attempt, "*").encode()
    return found


def assert_same_payload(root: Path, alone: Path) -> None:
    found, wanted = payload(root), payload(alone)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def moments(root: Path) -> Iterator[Moment]:
    """What each kill waits for."""
    rng = np.random.default_rng(5)
    for goal in sorted(rng.integers(0, TABLES, PLANNING).tolist()):
        yield lambda goal=goal: len(list(root.glob("samples/[!.]*"))) >= goal
    for goal in sorted(rng.integers(1, COMMITS - 6, ENCODING).tolist()):
        yield lambda goal=goal: len(commits(root)) >= goal
    for goal in range(PUBLISHING):
        yield lambda goal=goal: len(commits(root)) == COMMITS and len(generations(root)) >= goal


def generations(root: Path) -> list[Path]:
    return [path for path in root.glob("columns/*/*/generations/*") if NUMBER.fullmatch(path.name)]


def phase(root: Path) -> str:
    """How far a run that was killed just now has come."""
    if not list(root.glob("plans/[!.]*")):
        return "planning"
    if len(commits(root)) == COMMITS:
        return "publishing"
    parts = (path for path in root.glob("columns/*/*/parts/**/*") if path.is_file())
    known = {attempt for record in commits(root).values() for attempt in [json.loads(record)["attempt"]]}
    is_lost = any(re.search(r"-([0-9a-f]{8})[./]", str(path))[1] not in known for path in parts)
    return "committing" if is_lost else "encoding"


@pytest.mark.faults
def test_a_run_killed_twenty_times_makes_the_cache_of_one_that_was_not(
    data: Path, alone: Path, pocket: Path, tmp_path: Path
) -> None:
    root, rng = tmp_path / "cache", np.random.default_rng(0)
    command, seen, phases = arguments(data, root, pocket, *FLAGS), dict[str, bytes](), []
    for number, moment in enumerate(moments(root)):
        process = start(tmp_path / f"{number}.txt", "precompute", *command)
        try:
            wait_until(moment, PATIENCE, f"moment {number}")
            time.sleep(rng.uniform(0, MOST_WAIT))
        finally:
            process.kill()
        assert seen.items() <= commits(root).items(), "a commit record was replaced"
        seen = commits(root)
        phases.append(phase(root))
    assert len(phases) == 20
    assert {"planning", "committing", "publishing"} <= set(phases), phases
    printed = start(tmp_path / "last.txt", "precompute", *command).wait(PATIENCE)
    assert seen.items() <= commits(root).items()
    assert_same_payload(root, alone)
    assert_same_records(records(root), records(alone))
    assert_nothing_else_counts(root, alone)
    assert f"{SAMPLES} samples found = {SAMPLES - 2} cached + 2 rejected" in printed


@pytest.mark.faults
@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_two_launches_at_once_commit_each_part_once(
    format: str, data: Path, pocket: Path, tmp_path: Path
) -> None:
    flags = (*FLAGS, "--format", format)
    root, alone = tmp_path / "cache", tmp_path / "alone"
    precompute(data, alone, pocket, *flags)
    command, seen = arguments(data, root, pocket, *flags), dict[str, bytes]()
    pair = [start(tmp_path / f"{number}.txt", "precompute", *command) for number in range(2)]
    while any(process.child.poll() is None for process in pair):
        found = commits(root)
        assert seen.items() <= found.items(), "a commit record was replaced"
        seen = found
        time.sleep(0.01)
    printed = [process.wait(PATIENCE) for process in pair]
    assert_same_payload(root, alone)
    assert_nothing_else_counts(root, alone)
    attempts = {json.loads(record)["attempt"] for record in commits(root).values()}
    files = (path.as_posix() for path in root.glob("columns/*/*/parts/**/*") if path.is_file())
    kept = {re.search(r"-([0-9a-f]{8})\.(?:zarr|tar|npz)", file)[1] for file in files}
    assert kept == attempts, "what a launch wrote for nothing is still there"
    assert all(f"= {SAMPLES - 2} cached + 2 rejected" in text for text in printed)
