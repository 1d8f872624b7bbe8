"""`data-tools gc` removes what nothing names, and never what something does."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from data_tools.cache import check, gc
from data_tools.cache.generation import publish
from data_tools.cache.identity import digest
from data_tools.cache.manifest import Cache, sealed
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import open_store
from data_tools.cli import cli
from data_tools.errors import DataFault
from tests.data_tools.caches import COLUMNS, Made, build, column, read, same
from tests.data_tools.test_generation import commit_prompts


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    folder = tmp_path_factory.mktemp("gc") / "cache"
    return folder, build(folder)


@pytest.fixture
def root(built: tuple[Path, Made], tmp_path: Path) -> Path:
    """A copy in which everything is two days old."""
    root = Path(shutil.copytree(built[0], tmp_path / "cache"))
    age(root, 48)
    return root


def age(path: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    for found in [path, *path.rglob("*")]:
        os.utime(found, (then, then))


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def collect(root: Path, **options: object) -> list[str]:
    removed, _ = gc.collect(Cache.open(open_store(root)), **options)
    return [top for garbage in removed for top in garbage.tops]


def litter(root: Path) -> dict[str, list[str]]:
    """One of each kind of garbage, two days old: kind → its files and folders."""
    (record,) = root.glob("columns/image/*/commits/part-00001.json")
    attempt = json.loads(record.read_text())["attempt"]
    parts = record.parent.parent / "parts"
    for suffix in (".zarr", ".npz"):  # an attempt that lost the race
        whole, other = parts / f"part-00001-{attempt}{suffix}", parts / f"part-00001-00aa00aa{suffix}"
        (shutil.copytree if whole.is_dir() else shutil.copy)(whole, other)
    left = [
        parts / f"part-00001-{attempt}.zarr" / ".tmp-1234-zarr.json",
        root / "samples" / ".tmp-1234-x.jsonl",
        root / ".tmp-1234-cache.json",
        record.parent / ".tmp-1234-part-00002.json",
    ]
    table = root / "samples" / "part-00000-00aa00aa.jsonl"
    for path in (*left, table):
        path.write_text("something")
    older = root / "columns" / "text" / digest(column("text", alpha="drop").identity)[:12]
    shutil.copytree(next(root.glob("columns/text/*/commits")).parent, older)
    age(root, 48)

    def names(paths: list[Path]) -> list[str]:
        return [path.relative_to(root).as_posix() for path in paths]

    return {
        "attempt": names(sorted(parts.glob("part-00001-00aa00aa.*"))),
        "temporary": names(left),
        "table": names([table]),
        "identity": names([older]),
    }


def test_a_clean_cache_loses_nothing(root: Path) -> None:
    before = files(root)
    assert collect(root, older_than_hours=0) == []
    assert files(root) == before


def test_each_kind_of_garbage_goes_and_nothing_else(root: Path, built: tuple[Path, Made]) -> None:
    before = files(root)
    kinds = litter(root)
    assert files(root) > before
    assert sorted(collect(root)) == sorted(name for names in kinds.values() for name in names)
    assert files(root) == before
    assert same(read(root), built[1])
    assert check.verify(Cache.open(open_store(root)), full=True).faults == []


def test_a_dry_run_names_the_same_and_removes_nothing(root: Path) -> None:
    litter(root)
    before = files(root)
    named = collect(root, dry_run=True)
    assert files(root) == before
    assert collect(root) == named


def test_what_may_still_be_written_stays(root: Path) -> None:
    """One young file keeps all files of its attempt, or its whole identity."""
    kinds = litter(root)
    before = files(root)
    for name in (kinds["attempt"][1] + "/image_embeds/zarr.json", kinds["table"][0], kinds["temporary"][0]):
        os.utime(root / name)
    os.utime(next((root / kinds["identity"][0]).glob("commits/part-00002.json")))
    assert sorted(collect(root)) == sorted(kinds["temporary"][1:])
    assert collect(root, older_than_hours=100) == []
    assert before - files(root) == set(kinds["temporary"][1:])
    removed, young = gc.collect(Cache.open(open_store(root)), older_than_hours=0)
    assert (len(removed), len(young)) == (4, 0)


def test_the_attempt_that_a_repair_withdrew_goes(root: Path) -> None:
    (record,) = root.glob("columns/text/*/commits/part-00000.json")
    attempt = json.loads(record.read_text())["attempt"]
    record.unlink()
    assert {name.rpartition("/")[2] for name in collect(root)} == {
        f"part-00000-{attempt}.zarr",
        f"part-00000-{attempt}.npz",
    }


def test_tables_of_an_older_plan_stay(root: Path) -> None:
    table = root / "samples" / "part-00007-00aa00aa.jsonl"
    table.write_text("{}\n")
    plan = {"parts": [{"name": "part-00007", "table": f"samples/{table.name}"}]}
    (root / "plans" / "000002.json").write_bytes(sealed(plan))
    age(root, 48)
    assert collect(root) == []


def test_what_is_not_known_stays(root: Path) -> None:
    """A user's notes, a consolidated zarr, a column that a run is about to declare."""
    parts = next(root.glob("columns/image/*/parts"))
    strangers = [
        root / "notes.txt",
        root / "samples" / "README.jsonl",
        root / "columns" / "image" / "my notes" / "of today",
        parts / "README",
        parts / "mine.npz",
        parts / "mine-00aa00aa.zarr" / "zarr.json",
        next(parts.glob("part-00000-*.zarr")) / ".zmetadata",
        root / "columns" / "latents@96" / "0123456789ab" / "parts" / "part-00000-00aa00aa.npz",
    ]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    age(root, 48)
    assert collect(root) == []


def test_the_two_newest_generations_stay_and_an_older_one_still_serves_its_reader(root: Path) -> None:
    cache, about = Cache.open(open_store(root)), column("text")
    publish(cache, about, cache.plan())
    reader = CacheReader(root, ["text"])
    before = reader.gather("text", reader.rows("text")[0])
    for number in range(3):
        commit_prompts(root, f"prompts-{number:08d}", "a cat")
        publish(cache, about, cache.plan())
    folder = next(root.glob("columns/text/*/generations"))
    (folder / "notes.npz").write_text("mine")
    assert collect(root) == []  # too young
    os.utime(folder / "000001.npz", (0, 0))
    assert [Path(name).name for name in collect(root)] == ["000001.npz"]
    assert [Path(name).name for name in collect(root, older_than_hours=0)] == ["000002.npz"]
    assert sorted(path.name for path in folder.iterdir()) == ["000003.npz", "000004.npz", "notes.npz"]
    for name, value in reader.gather("text", reader.rows("text")[0]).items():
        assert np.array_equal(value, before[name])
    assert CacheReader(root, ["text"]).num_samples == 14


def test_a_link_is_not_followed(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    link = next(root.glob("columns/image/*/parts")) / "part-00000-00aa00aa.zarr"
    link.symlink_to(elsewhere)
    collect(root, older_than_hours=0)
    assert not link.is_symlink()
    assert (elsewhere / "precious").exists()


@pytest.mark.parametrize(
    "pattern", ["plans/000001.json", "columns/text/column.json", "columns/image/*/commits/part-00001.json"]
)
def test_an_unreadable_record_stops_it_before_anything_goes(root: Path, pattern: str) -> None:
    litter(root)
    (path,) = root.glob(pattern)
    path.write_text("{}")
    before = files(root)
    with pytest.raises(DataFault, match=path.name.replace(".", r"\.")):
        collect(root)
    assert files(root) == before


def test_the_command_prints_what_and_how_much(root: Path) -> None:
    names = [str(root / name) for names in litter(root).values() for name in names]
    for flags in (["--dry-run"], []):
        out = CliRunner().invoke(cli, ["gc", str(root), *flags]).stdout
        assert all(name in out for name in names)
        assert ("would be removed" in out.splitlines()[-1]) == bool(flags)
    out = CliRunner().invoke(cli, ["gc", str(root)]).stdout
    assert out == f"{root}: 0 B in 0 items removed\n"


def test_all_columns_are_looked_at(root: Path) -> None:
    for name in COLUMNS:
        (next(root.glob(f"columns/{name}/*/parts")) / "part-00009-00aa00aa.npz").write_text("x")
    age(root, 48)
    assert len(collect(root)) == len(COLUMNS)
