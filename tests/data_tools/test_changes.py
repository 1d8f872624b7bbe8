"""A plan follows its source: what was kept, added, changed and removed, sample by sample."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash

from data_tools.cache import changes
from data_tools.cache.listing import compare
from data_tools.cache.manifest import Cache, Part, sealed
from data_tools.cache.plan import plan_source
from data_tools.cache.store import LocalStore
from data_tools.errors import UserError
from data_tools.sources import Sample
from tests.data_tools.shelf import NEW, P, Q, Shelf, contents, edited, live, pictures, retired, without

CASES: dict[str, tuple[Callable, dict[str, list[str]], dict[str, tuple], list[str]]] = {
    # what is done → kinds with their keys, retired positions by part, samples of the parts added
    "nothing": (lambda now: now, {}, {}, []),
    "add": (lambda now: {"a": NEW, **now}, {"new": ["a"]}, {}, ["a"]),
    "remove": (lambda now: without(now, "k1"), {"removed": ["k1"]}, {"part-00000": ((1, 2),)}, []),
    "remove a run": (
        lambda now: without(now, "k1", "k2", "k3"),
        {"removed": ["k1", "k2", "k3"]},
        {"part-00000": ((1, 3),), "part-00001": ((0, 1),)},
        [],
    ),
    "edit a caption": (
        lambda now: edited(now, "k4", captions=("edited",)),
        {"captions": ["k4"]},
        {"part-00001": ((1, 2),)},
        ["k4"],
    ),
    "add a caption": (
        lambda now: edited(now, "k4", captions=("caption 4", "second")),
        {"captions": ["k4"]},
        {"part-00001": ((1, 2),)},
        ["k4"],
    ),
    "edit a picture": (
        lambda now: edited(now, "k0", data=P),
        {"picture": ["k0"]},
        {"part-00000": ((0, 1),)},
        ["k0"],
    ),
    "edit both": (
        lambda now: edited(now, "k0", data=P, captions=("edited",)),
        {"picture and captions": ["k0"]},
        {"part-00000": ((0, 1),)},
        ["k0"],
    ),
    "touch": (lambda now: edited(now, "k0", mtime_ns=9), {}, {}, []),
    "move": (lambda now: edited(now, "k0", place="elsewhere/k0.png"), {}, {}, []),
    "rename": (
        lambda now: {"r": now["k6"], **without(now, "k6")},
        {"removed": ["k6"], "new": ["r"]},
        {},
        ["r"],
    ),
    "swap two pictures": (
        lambda now: edited(
            edited(now, "k0", data=now["k5"].data, mtime_ns=2), "k5", data=now["k0"].data, mtime_ns=2
        ),
        {"picture": ["k0", "k5"]},
        {"part-00000": ((0, 1),), "part-00001": ((2, 3),)},
        ["k0", "k5"],
    ),
    "reorder": (lambda now: dict(reversed(now.items())), {}, {}, []),
    "the same content under a second key": (
        lambda now: {**now, "copy": now["k2"]},
        {"new": ["copy"]},
        {},
        ["copy"],
    ),
    "a picture goes bad": (
        lambda now: edited(now, "k3", problem="leads out of the folder"),
        {"picture": ["k3"]},
        {"part-00001": ((0, 1),)},
        ["k3"],
    ),
    "a file goes missing, its row stays": (
        lambda now: edited(now, "k3", data=None),
        {"picture": ["k3"]},
        {"part-00001": ((0, 1),)},
        ["k3"],
    ),
    "the last part grows": (
        lambda now: {**now, "k7": NEW, "k8": NEW, "k9": NEW, "k10": NEW},
        {"new": ["k7", "k8", "k9"]},
        {},
        ["k7", "k8", "k9", "k10"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_different_and_what_becomes_of_the_plan(tmp_path: Path, case: str) -> None:
    change, kinds, wanted, added = CASES[case]
    store, before = LocalStore(tmp_path), pictures()
    first = plan_source(store, Shelf(before), 3)
    tables = {part.table: store.read(part.table) for part in first}
    now = change(before)
    with closing(compare(store, Shelf(now), None)) as listing:
        found = {kind: sorted(keys) for kind, keys in listing.changes.examples.items() if kind != "kept"}
        assert found == {kind: sorted(keys) for kind, keys in kinds.items()}
    plan = plan_source(store, Shelf(now), None)
    assert retired(plan) == wanted
    assert {part.table: store.read(part.table) for part in first} == tables
    assert live(store).keys() == now.keys()
    old = {part.name for part in first}
    assert [key for key, (part, _) in live(store).items() if part not in old] == added
    assert [p.name for p in plan if p.name not in old] == [
        f"part-{3 + i:05d}" for i in range(-(-len(added) // 3))
    ]
    assert store.names("plans") == ["000001.json", "000002.json"][: 2 if kinds else 1]
    assert plan_source(store, Shelf(now), None) == plan
    fresh = LocalStore(tmp_path / "fresh")
    plan_source(fresh, Shelf(now), 3)
    assert contents(store) == contents(fresh)


def test_a_changed_sample_says_where_what_has_not_changed_was(tmp_path: Path) -> None:
    store, now = LocalStore(tmp_path), pictures()
    plan_source(store, Shelf(now), 3)
    now = edited(now, "k1", captions=("edited",))
    now = edited(edited(now, "k3", data=P), "k5", data=P, captions=("edited",))
    plan_source(store, Shelf(now), 3)
    places = {
        key: (row.get("picture_was", ""), row.get("captions_was", ""))
        for key, (_, row) in live(store).items()
    }
    assert {key: place for key, place in places.items() if any(place)} == {
        "k1": ("part-00000:1", ""),
        "k3": ("", "part-00001:0"),
    }


def test_only_touched_files_are_read_and_rehash_reads_all(tmp_path: Path) -> None:
    store, now = LocalStore(tmp_path), pictures()
    plan_source(store, Shelf(now), 3)
    shelf = Shelf({**edited(edited(now, "k4", mtime_ns=2), "k5", captions=("x",)), "new": NEW})
    with closing(compare(store, shelf, None)):
        assert shelf.was_read == ["k4"]
    secretly = Shelf(edited(now, "k2", data=b"PICTURE 2"))  # same size, same time
    assert plan_source(store, secretly, None)[0].retired == ()
    assert secretly.was_read == []
    assert plan_source(store, secretly, None, rehash=True)[0].retired == ((2, 3),)


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    store, now = LocalStore(tmp_path), edited(pictures(), "k2", data=None)
    plan_source(store, Shelf(now), 3)
    now = edited(now, "k2", problem="unreadable")
    plan_source(store, Shelf(now), 3)
    assert live(store)["k2"][1]["problem"] == "unreadable"
    plan_source(store, Shelf(pictures()), 3)
    assert live(store)["k2"][0] == "part-00004"
    assert live(store)["k2"][1]["xxh3_128"]


def test_a_part_without_samples_left_goes_and_its_number_is_never_used_again(tmp_path: Path) -> None:
    store, now = LocalStore(tmp_path), pictures()
    plan_source(store, Shelf(now), 3)
    plan = plan_source(store, Shelf(without(now, "k6")), 3)
    assert [part.name for part in plan] == ["part-00000", "part-00001"]
    plan = plan_source(store, Shelf(now), 3)
    assert [part.name for part in plan] == ["part-00000", "part-00001", "part-00003"]
    assert live(store).keys() == now.keys()


def test_three_changes_in_a_row_are_the_source_as_it_is(tmp_path: Path) -> None:
    store, now = LocalStore(tmp_path), pictures()
    plan_source(store, Shelf(now), 3)
    for step in (
        {**without(now, "k0"), "a": NEW},
        {**edited(without(now, "k0", "k6"), "k2", captions=("two",)), "a": NEW},
        {**edited(edited(now, "k2", captions=("two",)), "k3", data=P), "a": replace(NEW, data=Q)},
    ):
        now = step
        plan_source(store, Shelf(now), 3)
        assert live(store).keys() == now.keys()
        assert {key: tuple(row["captions"]) for key, (_, row) in live(store).items()} == {
            key: picture.captions for key, picture in now.items()
        }
    assert store.names("plans")[-1] == "000004.json"


def test_losing_more_than_half_is_refused_until_it_is_allowed(tmp_path: Path) -> None:
    store, now = LocalStore(tmp_path), pictures(8)
    plan_source(store, Shelf(now), 3)
    before = sorted(tmp_path.rglob("*"))
    gone = edited(without(now, "k1", "k2", "k4"), "k5", data=P)
    assert len(plan_source(LocalStore(shutil.copytree(tmp_path, tmp_path.with_name("half"))), Shelf(gone), 3))
    gone = edited(gone, "k0", data=P)
    with pytest.raises(
        UserError, match=r"^--data: lacks 5 of the 8 pictures .*3 removed, 2 changed.*allow-shrink"
    ):
        plan_source(store, Shelf(gone), 3)
    with pytest.raises(UserError, match="lacks 8 of the 8 pictures"):
        plan_source(store, Shelf({}), 3)
    assert sorted(tmp_path.rglob("*")) == before
    plan_source(store, Shelf(gone), 3, allow_shrink=True)
    assert live(store).keys() == gone.keys()
    assert plan_source(store, Shelf({}), 3, allow_shrink=True) == []


def test_new_captions_for_everything_are_no_loss(tmp_path: Path) -> None:
    store, now = LocalStore(tmp_path), pictures()
    plan_source(store, Shelf(now), 3)
    plan = plan_source(store, Shelf({k: replace(p, captions=("new",)) for k, p in now.items()}), 3)
    assert [part.name for part in plan] == ["part-00003", "part-00004", "part-00005"]


def test_a_key_that_comes_twice_is_an_error(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan_source(store, Shelf(pictures()), 3)

    class Twice(Shelf):
        def __iter__(self):
            yield from super().__iter__()
            yield from super().__iter__()

    with pytest.raises(UserError, match="the key 'k0' comes twice"):
        plan_source(store, Twice(pictures()), 3)


def test_a_plan_of_before_plans_had_numbers_is_read_and_followed(tmp_path: Path) -> None:
    """Version 1 as its first programs wrote it: no `next_part`, tables named by attempt, every field."""
    store, now = LocalStore(tmp_path), pictures()
    plan = plan_source(store, Shelf(now), 3)
    old = {"part_size": 3, "samples": 7, "parts": []}
    for part in plan:
        fields = ("key", "captions", "place", "num_bytes", "mtime_ns", "xxh3_128")
        rows = [{name: row.get(name, "") for name in fields} for row in Cache.open(store).table(part)]
        data = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()
        table = f"samples/{part.name}-0badcafe.jsonl"
        store.put(table, [data])
        hashed = xxhash.xxh3_128_hexdigest(data)
        old["parts"].append({"name": part.name, "samples": part.samples, "table": table, "xxh3_128": hashed})
    store.put("plans/000001.json", [sealed(old)])
    assert [part.table for part in plan_source(store, Shelf(now), None)] == [p["table"] for p in old["parts"]]
    plan = plan_source(store, Shelf({**without(now, "k0"), "a": NEW}), None)
    assert [part.name for part in plan][-1] == "part-00003"
    assert plan[0].retired == ((0, 1),)


def test_a_moved_sample_is_read_where_it_is_now(tmp_path: Path) -> None:
    store, now = LocalStore(tmp_path), pictures()
    plan_source(store, Shelf(now), 3)
    with closing(compare(store, Shelf(edited(now, "k4", place="new/k4.png")), 3)) as listing:
        table = Cache.open(store).table(listing.parts[1])
        planned = [Sample(**row) for row in table]
        assert {key: to["place"] for key, to in listing.moved(planned).items()} == {"k4": "new/k4.png"}
        assert not listing.changes


def test_runs() -> None:
    assert changes.runs(np.array([], dtype=np.int64)) == ()
    assert changes.runs(np.array([0, 1, 2, 5, 7, 8])) == ((0, 3), (5, 6), (7, 9))
    part = Part("part-00000", 9, "t", "h", ((0, 3), (5, 6), (7, 9)))
    assert part.live == 3
    assert part.positions().tolist() == [3, 4, 6]
    assert Part.from_json(json.loads(json.dumps(part.to_json()))) == part


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    """What Python holds after three times the samples is what it holds after a few: batches and marks."""

    def peak(count: int) -> int:
        store = LocalStore(tmp_path / str(count))
        plan_source(store, Shelf(pictures(count)), 100)
        now = Shelf(pictures(count))
        tracemalloc.start()
        with closing(compare(store, now, None)) as listing:
            assert not listing.changes
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(200)  # imports
    assert peak(6_000) < peak(2_000) + 100_000
