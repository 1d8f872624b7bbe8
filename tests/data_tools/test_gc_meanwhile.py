"""`data-tools gc` beside readers of older generations, plans in the making, writers and its own death."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from data_tools.cache import gc
from data_tools.cache.generation import publish
from data_tools.cache.manifest import Cache, sealed
from data_tools.cache.store import Listed, LocalStore, open_store
from data_tools.cache.writer import PartWriter
from data_tools.errors import DataFault
from tests.data_tools.caches import column
from tests.data_tools.test_gc import age, collect, files, litter
from tests.data_tools.test_gc import built as built  # a fixture
from tests.data_tools.test_gc import root as root  # a fixture


def test_what_a_kept_generation_names_stays(root: Path) -> None:
    """A reader may have opened it before a repair withdrew the commit record."""
    cache, about = Cache.open(open_store(root)), column("text")
    publish(cache, about, cache.plan())
    (record,) = root.glob("columns/text/*/commits/part-00000.json")
    attempt = json.loads(record.read_text())["attempt"]
    record.unlink()
    assert collect(root, older_than_hours=0) == []
    next(root.glob("columns/text/*/generations/*")).unlink()
    assert {Path(name).stem for name in collect(root, older_than_hours=0)} == {f"part-00000-{attempt}"}


def test_a_damaged_generation_stops_it_before_anything_goes(root: Path) -> None:
    cache, about = Cache.open(open_store(root)), column("text")
    publish(cache, about, cache.plan())
    (path,) = root.glob("columns/text/*/generations/*")
    litter(root)
    path.write_bytes(path.read_bytes()[:-1])
    before = files(root)
    with pytest.raises(DataFault, match=r"generations/000001\.npz has changed .*; run precompute --repair"):
        collect(root, older_than_hours=0)
    assert files(root) == before


def test_sample_tables_of_a_plan_that_is_being_made_stay(root: Path) -> None:
    before = files(root)
    (root / "plans" / "000001.json").unlink()
    assert collect(root, older_than_hours=0) == []
    assert before - files(root) == {"plans/000001.json"}


def test_a_sample_table_that_is_planned_meanwhile_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = litter(root)["table"][0]

    def find_then_plan(cache: Cache, objects: Iterable[Listed], find=gc.find) -> list[gc.Garbage]:
        found = list(find(cache, objects))
        (root / "plans" / "000002.json").write_bytes(sealed({"parts": [{"table": table}]}))
        return found

    monkeypatch.setattr(gc, "find", find_then_plan)
    removed = collect(root)
    assert len(removed) == 7
    assert table not in removed
    assert (root / table).exists()


def test_sample_tables_stay_while_their_plan_may_still_be_made(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = root / litter(root)["table"][0]
    other = table.with_name("part-00009-00aa00aa.jsonl")
    other.write_text("the last one")
    assert len(collect(root, dry_run=True)) == 7
    age(root, 48)

    def find_then_write(cache: Cache, objects: Iterable[Listed], find=gc.find) -> list[gc.Garbage]:
        found = list(find(cache, objects))
        os.utime(table)  # by another process that plans, and has come to the same table
        return found

    monkeypatch.setattr(gc, "find", find_then_write)
    assert len(collect(root)) == 8
    assert table.exists()
    assert not other.exists()


def test_the_folders_of_a_writer_that_lost_go(root: Path) -> None:
    store = LocalStore(root)
    late = PartWriter(store, column("image"), "part-00000")
    late.add(0, "k0", [{"image_embeds": np.zeros(12, dtype=np.float32)}])
    folders = {path for path in root.rglob("*") if path.is_dir()}
    assert not late.commit()
    left = {path for path in root.rglob("*") if path.is_dir()} - folders
    assert collect(root) == []  # too young
    age(root, 48)
    (top,) = collect(root)
    assert {path for path in left if path.exists()} == set()
    assert all(path.relative_to(root).as_posix().startswith(top) for path in left)


def test_killed_half_way_it_leaves_nothing_that_names_what_is_gone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, about = Cache.open(open_store(root)), column("text")
    publish(cache, about, cache.plan())
    kept = {name for name in files(root) if not name.startswith("columns/text/")}
    old = next(root.glob("columns/text/*/commits")).parent
    (root / "columns" / "text" / "column.json").write_bytes(sealed(column("text", alpha="drop").to_json()))
    age(root, 48)
    remove_many, calls = LocalStore.remove_many, []

    def killed(self: LocalStore, names: list[str]) -> None:
        calls.append(names)
        remove_many(self, names if len(calls) < 3 else names[:5])
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "remove_many", killed)
        with pytest.raises(KeyboardInterrupt):
            collect(root)
    assert not list(old.glob("commits/*"))
    assert not list(old.glob("generations/*"))
    assert any(path.is_file() for path in old.glob("parts/**/*"))
    assert collect(root, older_than_hours=0) == [old.relative_to(root).as_posix()]
    assert files(root) == kept | {"columns/text/column.json"}
    assert not old.exists()


def test_an_attempt_that_is_committed_meanwhile_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = root.glob("columns/image/*/commits/part-00001.json")
    text, find = record.read_text(), gc.find
    record.unlink()
    before = files(root)

    def find_then_commit(cache: Cache, objects: Iterable[Listed]) -> list[gc.Garbage]:
        found = list(find(cache, objects))
        record.write_text(text)
        return found

    monkeypatch.setattr(gc, "find", find_then_commit)
    assert collect(root) == []
    assert files(root) == before | {record.relative_to(root).as_posix()}
