"""A column made anew: the old one is read until the new one is whole, then `gc`'s."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from data_tools.cache import gc, redo, report
from data_tools.cache.fields import Column
from data_tools.cache.manifest import NULL_PART, Cache, column_folder
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import Listed, LocalStore
from data_tools.cache.writer import PartWriter
from data_tools.errors import DataFault, UserError
from tests.data_tools.caches import COLUMNS, Made, build, column, random_row, read, same
from tests.data_tools.test_gc import age
from tests.data_tools.test_generation import commit_prompts, publish_all

NEW = column("text", "float16")
OTHER = column("text", "float16", alpha="drop")
PARTS = ("part-00000", "part-00001", "part-00002", NULL_PART)


def opened(root: Path) -> Cache:
    return Cache.open(LocalStore(root))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    build(tmp_path)
    publish_all(tmp_path)
    return tmp_path


def commit(root: Path, about: Column, *parts: str) -> None:
    """Rows for parts of a column."""
    cache, rng = opened(root), np.random.default_rng(7)
    plan = {part.name: part for part in cache.plan()}
    for name in parts:
        writer = PartWriter(cache.store, about, name)
        table = cache.table(plan[name]) if name in plan else [{"key": "", "captions": [""]}]
        for number, row in enumerate(table):
            writer.add(number, row["key"], [random_row(about, rng) for _ in row["captions"]])
        assert writer.commit()


def switch(root: Path, about: Column = NEW) -> str:
    return redo.switch(opened(root), about, opened(root).plan())


def collected(root: Path, **options: float) -> list[str]:
    removed, _ = gc.collect(opened(root), **options)
    return [top for garbage in removed for top in garbage.tops]


def test_the_old_column_is_read_until_the_new_one_is_whole(root: Path) -> None:
    before = read(root)
    redo.announce(opened(root), NEW)
    for number, part in enumerate(PARTS):
        assert switch(root) == f"redo of text: {number} of 4 parts; the same command continues"
        assert same(read(root), before)
        commit(root, NEW, part)
    reader = CacheReader(root, ["text"])
    switch(root)
    assert read(root, ("text",))["text"]["k3"][0]["prompt_embeds"].dtype == np.float16
    old = reader.gather("text", reader.rows("text", np.array([3]))[0])["prompt_embeds"][0]
    assert np.array_equal(old, before["text"]["k3"][0]["prompt_embeds"])


def test_any_number_of_processes_may_switch(root: Path) -> None:
    for _ in range(2):
        assert redo.wanted(opened(root), NEW)
        redo.announce(opened(root), NEW)
    commit(root, NEW, *PARTS)
    slow = opened(root)
    assert slow.column("text") == column("text")
    said = [switch(root)]
    assert redo.pending(slow, "text") is None
    said.append(redo.switch(slow, NEW, slow.plan()))
    assert said == ["text was made anew; data-tools gc removes what it was before"] * 2
    assert opened(root).column("text") == NEW
    assert not redo.wanted(opened(root), NEW)  # the same command again


def test_a_second_redo_may_follow_and_may_lead_back(root: Path) -> None:
    before = read(root)
    redo.announce(opened(root), NEW)
    commit(root, NEW, *PARTS)
    switch(root)
    assert redo.wanted(opened(root), column("text"))
    redo.announce(opened(root), column("text"))
    switch(root, column("text"))  # nothing to encode: it is all there
    assert same(read(root), before)


def test_prompts_are_part_of_what_a_redo_needs(root: Path) -> None:
    commit_prompts(root, "prompts-0000aaaa", "a", "b")
    redo.announce(opened(root), NEW)
    commit(root, NEW, *PARTS)
    assert "4 of 5 parts" in switch(root)
    assert opened(root).column("text") == column("text")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (column("text"), "--redo: .*column text was made with these very options; --repair redoes"),
        (column("latents@24", extra=1), "--redo: column latents@24 is not in the cache .*; leave --redo out"),
        (OTHER, r"--redo: .* is being redone otherwise \(alpha null → drop\); .* delete .*text/redo\.json"),
    ],
)
def test_what_cannot_be_redone_is_refused(root: Path, about: Column, message: str) -> None:
    redo.announce(opened(root), NEW)
    (root / "columns" / "latents@24" / "column.json").unlink()
    with pytest.raises(UserError, match=message):
        redo.wanted(opened(root), about)


def test_a_redo_that_was_given_up_or_replaced_does_not_switch(root: Path) -> None:
    redo.announce(opened(root), NEW)
    commit(root, NEW, *PARTS)
    (root / "columns" / "text" / "redo.json").unlink()
    with pytest.raises(UserError, match=r"--redo: .*column text: this redo was given up or replaced"):
        switch(root)
    redo.announce(opened(root), OTHER)
    with pytest.raises(UserError, match=r"--redo: .*column text: this redo was given up or replaced"):
        switch(root)
    with pytest.raises(UserError, match=r"--redo: .*column text: this redo was given up or replaced"):
        redo.announce(opened(root), NEW)
    assert opened(root).column("text") == column("text")


def test_a_damaged_announcement_is_an_error(root: Path) -> None:
    redo.announce(opened(root), NEW)
    path = root / "columns" / "text" / "redo.json"
    path.write_bytes(path.read_bytes().replace(b"float16", b"float32"))
    with pytest.raises(DataFault, match=r"redo\.json: has changed bytes"):
        collected(root, older_than_hours=0)
    with pytest.raises(DataFault, match=r"redo\.json: has changed bytes"):
        switch(root)


def test_a_column_that_holds_nothing_is_no_redo(tmp_path: Path) -> None:
    parts = frozenset(("latents@24", part) for part in PARTS)
    build(tmp_path, unfinished=parts)
    assert not redo.wanted(opened(tmp_path), column("latents@24", "float16"))


def test_inspect_says_how_far_a_redo_has_come(root: Path) -> None:
    before = report.inspect(opened(root))
    redo.announce(opened(root), NEW)
    commit(root, NEW, "part-00001", NULL_PART)
    found = report.inspect(opened(root))
    assert found["columns"]["text"].pop("redo")["parts"] == 1
    assert before["columns"]["text"].pop("redo") is None
    assert found == before
    new = column_folder(NEW).rpartition("/")[2]
    lines = report.as_text(report.inspect(opened(root))).splitlines()
    assert f"text: redo in progress: 1 of 3 parts of identity {new}" in lines


def test_gc_leaves_an_unfinished_redo_and_after_the_switch_the_old_column_goes(root: Path) -> None:
    made: Made = read(root)
    redo.announce(opened(root), NEW)
    commit(root, NEW, *PARTS)
    lost = root / column_folder(NEW) / "parts" / "part-00001-00aa00aa.npz"
    lost.write_text("an attempt that lost the race")
    age(root, 48)
    assert collected(root) == [lost.relative_to(root).as_posix()]
    switch(root)
    assert collected(root) == []  # trainers may have it open: it was in use a moment ago
    yesterday = time.time() - 3600 * 25
    os.utime(root / "columns" / "text" / "column.json", (yesterday, yesterday))
    assert collected(root) == [column_folder(column("text"))]
    assert same(read(root, ("image",)), {"image": made["image"]})
    assert CacheReader(root, COLUMNS).num_samples == 14


def test_a_redo_that_was_given_up_goes(root: Path) -> None:
    redo.announce(opened(root), NEW)
    commit(root, NEW, "part-00001")
    (root / "columns" / "text" / "redo.json").unlink()
    age(root, 48)
    assert collected(root) == [column_folder(NEW)]


def test_a_redo_that_begins_while_gc_looks_is_safe(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(root, NEW, "part-00001")
    age(root, 48)
    find = gc.find

    def find_then_announce(cache: Cache, objects: Iterable[Listed]) -> list[gc.Garbage]:
        found = list(find(cache, objects))
        redo.announce(opened(root), NEW)
        return found

    monkeypatch.setattr(gc, "find", find_then_announce)
    assert collected(root) == []
    assert (root / column_folder(NEW)).is_dir()
