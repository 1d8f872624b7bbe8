"""A plan is the same for all who make it, and is made again only where its source has changed."""

import json
import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from data_tools.cache.listing import compare
from data_tools.cache.manifest import Cache
from data_tools.cache.plan import mend_tables, plan_source
from data_tools.cache.store import LocalStore
from data_tools.errors import DataFault, UserError
from data_tools.sources import ImageFolder
from tests.data_tools.caches import listed
from tests.precompute.command import files


def test_parts_are_runs_of_samples_in_the_order_of_the_source(tmp_path: Path) -> None:
    plan = plan_source(LocalStore(tmp_path), listed(12), 5)
    assert [(part.name, part.samples) for part in plan] == [
        ("part-00000", 5),
        ("part-00001", 5),
        ("part-00002", 2),
    ]


@pytest.mark.parametrize("part_size", [5, None])
def test_planning_again_changes_nothing(tmp_path: Path, part_size: int | None) -> None:
    store = LocalStore(tmp_path)
    plan = plan_source(store, listed(12), 5)
    before = sorted(tmp_path.rglob("*"))
    assert plan_source(store, listed(12), part_size) == plan
    assert sorted(tmp_path.rglob("*")) == before


def test_another_part_size_is_refused_with_both_numbers(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan_source(store, listed(12), 5)
    with pytest.raises(UserError, match=r"^--part-size: found 3, but .* has 5$"):
        plan_source(store, listed(12), 3)


def test_comparing_writes_nothing(tmp_path: Path) -> None:
    with closing(compare(LocalStore(tmp_path / "cache"), listed(12), 5)) as listing:
        assert [len(samples) for samples in listing.fresh()] == [5, 5, 2]
        assert (listing.samples, listing.captioned, listing.captions) == (12, 12, 24)
    assert not (tmp_path / "cache").exists()


def test_sample_tables_are_named_by_their_content_and_leave_out_what_is_empty(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (first, _, _) = plan_source(LocalStore(tmp_path / name), listed(12), 5)
        assert first.table == f"samples/part-00000-{first.xxh3_128[:8]}.jsonl"
    assert files(tmp_path / "a") == files(tmp_path / "b")
    row = json.loads((tmp_path / "a" / first.table).read_text().splitlines()[0])
    assert row.keys() == {"key", "captions", "place", "num_bytes", "mtime_ns"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three picture files with captions; what is in them does not matter to a plan."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = [{"file_name": f"{i}.png", "text": f"number {i}"} for i in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for i in range(3):
        (folder / f"{i}.png").write_bytes(b"picture %d" % i)
    return folder


def source_at(folder: Path) -> ImageFolder:
    return ImageFolder.open(str(folder))


def test_a_copy_of_the_data_is_the_same_data(tmp_path: Path, folder: Path) -> None:
    store = LocalStore(tmp_path / "cache")
    plan = plan_source(store, source_at(folder), 2)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    for path in copy.iterdir():
        os.utime(path, ns=(1, 1))
    assert plan_source(store, source_at(copy), 2) == plan


def test_other_content_of_the_same_size_is_a_change(tmp_path: Path, folder: Path) -> None:
    store = LocalStore(tmp_path / "cache")
    plan_source(store, source_at(folder), 2)
    (folder / "1.png").write_bytes(b"PICTURE 1")
    first, second, third = plan_source(store, source_at(folder), 2)
    assert (first.retired, second.retired, third.name) == (((1, 2),), (), "part-00002")


def test_unchanged_files_are_not_read_again(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, source = LocalStore(tmp_path / "cache"), source_at(folder)
    plan = plan_source(store, source, 2)
    monkeypatch.setattr(ImageFolder, "read", lambda *_: pytest.fail("read"))
    assert plan_source(store, source, 2) == plan


def test_a_lost_or_changed_sample_table_is_written_again_from_the_same_source(
    tmp_path: Path, folder: Path
) -> None:
    store, source = LocalStore(tmp_path / "cache"), source_at(folder)
    first, second = plan_source(store, source, 2)
    before = {part.table: store.read(part.table) for part in (first, second)}
    store.remove(first.table)
    store.put(second.table, [b"{}\n"])
    assert len(mend_tables(Cache.open(store), source)) == 2
    assert {part.table: store.read(part.table) for part in (first, second)} == before
    store.remove(first.table)
    (folder / "0.png").write_bytes(b"PICTURE 0")
    with pytest.raises(DataFault, match="the source has changed since"):
        mend_tables(Cache.open(store), source)
