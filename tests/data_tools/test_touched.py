"""Files that were touched or moved and are the same: read once, then known; the plan stays as it is."""

import json
import shutil
import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.cache import gc, touched
from data_tools.cache.changes import Seen
from data_tools.cache.listing import compare, sample
from data_tools.cache.manifest import Cache, plan_hash
from data_tools.cache.plan import plan_source
from data_tools.cache.store import LocalStore
from tests.data_tools.shelf import NEW, Picture, Shelf, edited, pictures, retired, without
from tests.data_tools.test_gc import age

TOUCHED = {"k0": 9, "k4": 8}


def touch(now: dict[str, Picture], **times: int) -> dict[str, Picture]:
    for key, mtime_ns in (times or TOUCHED).items():
        now = edited(now, key, mtime_ns=mtime_ns)
    return now


def follow(store: LocalStore, now: dict[str, Picture]) -> list[str]:
    """Keys that a run reads."""
    shelf = Shelf(now)
    plan_source(store, shelf, 3)
    return shelf.was_read


def records(store: LocalStore) -> dict[str, dict[str, Seen]]:
    return {part: touched.read(store, part, number) for part, number in touched.newest(store).items()}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """Of `pictures`, in parts of 3."""
    store = LocalStore(tmp_path / "cache")
    plan_source(store, Shelf(pictures()), 3)
    return store


def test_touched_files_are_read_once(store: LocalStore) -> None:
    assert follow(store, touch(pictures())) == ["k0", "k4"]
    assert follow(store, touch(pictures())) == []
    assert follow(store, {**touch(pictures()), "new": NEW}) == ["new"]
    assert follow(store, {**touch(pictures(), **TOUCHED, k5=7), "new": NEW}) == ["k5"]
    assert follow(store, {**touch(pictures(), **TOUCHED, k5=7), "new": NEW}) == []


def test_a_touched_file_that_changes_later_is_noticed(store: LocalStore) -> None:
    follow(store, touch(pictures()))
    now = edited(touch(pictures(), k0=10, k4=8), "k0", data=b"PICTURE 0")
    assert follow(store, now) == ["k0"]
    assert retired(Cache.open(store).plan()) == {"part-00000": ((0, 1),)}


def test_the_plan_that_trainers_go_by_is_the_same(store: LocalStore) -> None:
    before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    plan = Cache.open(store).plan()
    follow(store, touch(pictures()))
    assert plan_hash(Cache.open(store).plan()) == plan_hash(plan)
    after = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    assert {path.relative_to(store.root).as_posix() for path in after.keys() - before.keys()} == {
        "touched/part-00000-000001.jsonl",
        "touched/part-00001-000001.jsonl",
    }
    assert {path: after[path] for path in before} == before


def test_a_comparison_alone_writes_nothing(store: LocalStore) -> None:
    with closing(compare(store, Shelf(touch(pictures())), None)):
        assert store.names("touched") == []


def test_where_a_sample_is_now_is_known_without_reading_it_again(store: LocalStore) -> None:
    now = edited(pictures(), "k4", place="new/k4.png")
    assert follow(store, now) == ["k4"]
    with closing(compare(store, Shelf(now), None)) as listing:
        assert listing.source.was_read == []
        planned = [sample(row) for row in Cache.open(store).table(listing.parts[1])]
        assert listing.moved(planned) == {"k4": {"place": "new/k4.png", "source": 0}}
        assert listing.has_moved
    with closing(compare(store, Shelf(touch(pictures())), None)) as listing:
        assert listing.moved(sample(row) for row in Cache.open(store).table(listing.parts[1])) == {}


def test_what_is_back_where_it_was_needs_no_record(store: LocalStore) -> None:
    follow(store, touch(pictures()))
    assert follow(store, touch(pictures(), k0=9)) == ["k4"]
    assert records(store) == {"part-00000": {"k0": Seen(9, 9, "k0.png", 0)}, "part-00001": {}}
    assert follow(store, touch(pictures(), k0=9)) == []


def test_retired_samples_leave_the_record(store: LocalStore) -> None:
    follow(store, touch(pictures(), k0=9, k1=9))
    assert records(store)["part-00000"].keys() == {"k0", "k1"}
    assert follow(store, touch(without(pictures(), "k1"), k0=9, k2=9)) == ["k2"]
    assert records(store)["part-00000"].keys() == {"k0", "k2"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data.replace(b"9", b"8"),
        lambda data: data + b"{}\n",
        lambda data: b" " + data,
        lambda data: b"",
        lambda data: b"\xff\xfe",
    ],
)
def test_a_damaged_record_costs_time_and_nothing_else(store: LocalStore, damage) -> None:
    now = touch(pictures(), k0=9)
    follow(store, now)
    path = store.root / "touched/part-00000-000001.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    assert follow(store, now) == ["k0"]
    assert follow(store, now) == []
    assert retired(Cache.open(store).plan()) == {}


def test_of_two_workers_one_writes_the_record(store: LocalStore) -> None:
    touched.write(store, "part-00000", 1, {"k0": Seen(1, 2, "a", 0)})
    touched.write(store, "part-00000", 1, {"k0": Seen(3, 4, "b", 0)})
    assert touched.read(store, "part-00000", 1) == {"k0": Seen(1, 2, "a", 0)}


def test_a_second_worker_with_the_same_to_say_writes_nothing(store: LocalStore) -> None:
    with closing(compare(store, Shelf(touch(pictures())), None)) as mine:
        follow(store, touch(pictures()))
        assert list(mine.touched(Cache.open(store))) == []


def test_a_cache_that_is_only_read_is_compared_all_the_same(store: LocalStore) -> None:
    (store.root / "touched").write_text("in the way of the folder")
    assert follow(store, touch(pictures())) == ["k0", "k4"]


def test_a_file_of_unknown_time_is_read_in_every_run(tmp_path: Path) -> None:
    """As the listing of an HTTP server without ETag and date has it."""
    store = LocalStore(tmp_path)
    now = {key: replace(picture, mtime_ns=0) for key, picture in pictures().items()}
    plan_source(store, Shelf(now), 3)
    assert follow(store, now) == [*now]
    assert store.names("touched") == []
    follow(store, edited(now, "k2", data=b"PICTURE 2"))
    assert retired(Cache.open(store).plan()) == {"part-00000": ((2, 3),)}


def test_a_row_without_a_size_is_known_by_its_mark(tmp_path: Path) -> None:
    """Rows of a dataset on the Hub: no size, and the revision as the time of change."""

    class Rows(Shelf):
        def __iter__(self):
            return (replace(each, num_bytes=-1) for each in super().__iter__())

    store = LocalStore(tmp_path)
    plan_source(store, Rows(pictures()), 3)
    again = Rows(pictures())
    plan_source(store, again, 3)
    assert again.was_read == []
    revised = Rows({key: replace(picture, mtime_ns=2) for key, picture in pictures().items()})
    plan_source(store, revised, 3)
    assert revised.was_read == [*pictures()]


def test_gc_keeps_the_newest_record_of_each_part(store: LocalStore) -> None:
    for time in (9, 10, 11):
        follow(store, touch(pictures(), k0=time))
    follow(store, touch(pictures(), k0=11, k4=8))
    (store.root / "touched/.tmp-12-part-00000-000009.jsonl").write_text("half")
    (store.root / "touched/notes.jsonl").write_text("mine")
    cache = Cache.open(store)
    assert gc.collect(cache)[0] == []  # too young
    age(store.root, 48)
    removed = [top for garbage in gc.collect(cache)[0] for top in garbage.tops]
    assert sorted(removed) == [
        "touched/.tmp-12-part-00000-000009.jsonl",
        "touched/part-00000-000001.jsonl",
        "touched/part-00000-000002.jsonl",
    ]
    kept = ["notes.jsonl", "part-00000-000003.jsonl", "part-00001-000001.jsonl"]
    assert store.names("touched") == kept
    assert follow(store, touch(pictures(), k0=11, k4=8)) == []


def test_records_can_be_read_by_people(store: LocalStore) -> None:
    follow(store, edited(pictures(), "k4", place="ünd/k4.png", mtime_ns=5))
    seal, line = (store.root / "touched/part-00001-000001.jsonl").read_text("utf-8").splitlines()
    assert json.loads(seal).keys() == {"xxh3_128"}
    assert line == '{"key": "k4", "mtime_ns": 5, "num_bytes": 9, "place": "ünd/k4.png", "source": 0}'


def test_memory_does_not_grow_with_what_was_touched(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        store = LocalStore(tmp_path / str(count))
        plan_source(store, Shelf(pictures(count)), 100)
        now = {key: replace(picture, mtime_ns=5) for key, picture in pictures(count).items()}
        tops = []
        for reads in (count, 0):
            shelf = Shelf(now)
            shelf.was_read = Counting()
            tracemalloc.start()
            plan_source(store, shelf, 100)
            tops.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert shelf.was_read.count == reads
        shutil.rmtree(store.root)
        return max(tops)

    peak(200)  # imports
    assert peak(4_000) < peak(1_000) + 150_000


class Counting:
    """In the place of a list that would grow."""

    count = 0

    def append(self, _: str) -> None:
        self.count += 1
