"""A plan is made once, is the same for all who make it, and notices another source."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from data_tools.cache.manifest import Cache
from data_tools.cache.plan import mend_tables, plan_source
from data_tools.cache.store import LocalStore
from data_tools.errors import DataFault, UserError
from data_tools.sources import ImageFolder
from tests.data_tools.caches import Listed, listed


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


def test_without_write_nothing_is_written(tmp_path: Path) -> None:
    plan = plan_source(LocalStore(tmp_path / "cache"), listed(12), 5, write=False)
    assert [part.samples for part in plan] == [5, 5, 2]
    assert not (tmp_path / "cache").exists()


def test_a_changed_source_is_refused_with_counts_and_an_example(tmp_path: Path) -> None:
    store, source = LocalStore(tmp_path), listed(12)
    plan_source(store, source, 5)
    first, *rest = source.samples
    recaptioned = dataclasses.replace(rest[3], captions=("another",))
    changed = Listed((*rest[:3], recaptioned, *rest[4:], dataclasses.replace(first, key="new")))
    with pytest.raises(UserError, match=r"^--data: .*1 new, 1 changed, 1 removed; for example k4\)"):
        plan_source(store, changed, 5)
    with pytest.raises(UserError, match="for example the order of the samples"):
        plan_source(store, Listed(source.samples[::-1]), 5)
    with pytest.raises(UserError, match="0 new, 0 changed, 2 removed"):
        plan_source(store, Listed(source.samples[:-2]), 5)


@pytest.mark.parametrize("change", [{"num_bytes": 1}, {"place": "elsewhere.png"}])
def test_a_picture_of_another_size_or_place_is_a_change(tmp_path: Path, change: dict) -> None:
    store, source = LocalStore(tmp_path), listed(3)
    plan_source(store, source, 5)
    changed = Listed((*source.samples[:2], dataclasses.replace(source.samples[2], **change)))
    with pytest.raises(UserError, match="0 new, 1 changed, 0 removed; for example k2"):
        plan_source(store, changed, 5)


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
    return ImageFolder.open(str(folder), caption_column="text")


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
    with pytest.raises(UserError, match=r"0 new, 1 changed, 0 removed; for example 1\.png"):
        plan_source(store, source_at(folder), 2)


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
