"""Retired samples: still stored, and seen by nobody; in every command found = cached + rejected."""

import json
from pathlib import Path

import numpy as np
import pytest
import xxhash

from data_tools.cache import check, convert, export, merge, report
from data_tools.cache.convert import ConvertOptions
from data_tools.cache.export import ExportOptions
from data_tools.cache.generation import current, publish
from data_tools.cache.manifest import Cache
from data_tools.cache.merge import MergeOptions
from data_tools.cache.plan import plan_source
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import LocalStore, open_store
from data_tools.cache.writer import PartWriter
from data_tools.errors import UserError
from data_tools.sources import Sample
from tests.data_tools.caches import BUCKETS, COLUMNS, Listed, Made, build, listed, random_row, read, same
from tests.data_tools.changed import ADDED, RECAPTIONED, REMOVED, build_changed, change, finish
from tests.data_tools.origins import build_of, opened
from tests.data_tools.test_export import samples as exported_samples
from tests.data_tools.test_generation import publish_all

LIVE = {f"k{i}" for i in range(15)} - {*REMOVED}
LACKING = frozenset({("image", "k0"), ("text", "k1"), ("image", "k4"), ("text", "k4"), ("image", "k7")})
"k1 and k7 are rejected and then removed."


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    folder = tmp_path_factory.mktemp("retired") / "cache"
    made = build_changed(folder)
    publish_all(folder)
    return folder, made


def keys_of(made: Made) -> dict[str, set[str]]:
    return {name: {key for key in rows if key} for name, rows in made.items()}


def test_the_plan_retires_where_things_were_and_adds_at_the_end(changed: tuple[Path, Made]) -> None:
    parts = {part.name: (part.samples, part.retired) for part in opened(changed[0]).plan()}
    assert parts == {
        "part-00000": (5, ((1, 2), (3, 4))),
        "part-00001": (5, ((1, 5),)),
        "part-00002": (4, ()),
        "part-00003": (2, ()),
    }


@pytest.mark.parametrize("published", ["before", "never", "after"])
def test_a_reader_sees_live_samples_only(tmp_path: Path, published: str) -> None:
    made = build(tmp_path)
    if published == "before":
        publish_all(tmp_path)
    change(tmp_path, unfinished=True)
    made = {name: {k: v for k, v in rows.items() if k in {*LIVE, ""}} for name, rows in made.items()}
    for rows in made.values():
        rows.pop(RECAPTIONED)
    finish(tmp_path, made)
    if published == "after":
        publish_all(tmp_path)
    assert keys_of(made) == dict.fromkeys(COLUMNS, LIVE)
    assert same(read(tmp_path), made)


def test_a_column_added_later_has_live_samples_only(tmp_path: Path) -> None:
    parts = ("part-00000", "part-00001", "part-00002")
    build_changed(tmp_path, unfinished=frozenset(("latents@24", part) for part in parts))
    cache = opened(tmp_path)
    found = current(cache, cache.column("latents@24"), cache.plan())
    assert int(found.samples.sum()) == len(LIVE)
    assert check.verify(cache, full=True).faults == []
    assert keys_of(read(tmp_path)) == dict.fromkeys(COLUMNS, LIVE)
    assert report.count_line(report.inspect(cache)) == "10 samples found = 10 cached + 0 rejected"


def test_buckets_and_held_out_samples_are_live(tmp_path: Path) -> None:
    build_changed(tmp_path, buckets=BUCKETS[:1])
    reader = CacheReader(tmp_path, COLUMNS)
    names = {xxhash.xxh3_64_intdigest(f"k{i}".encode()): f"k{i}" for i in range(15)}
    held = reader.held_out(0.9999)
    assert {names[value] for value in reader.key_hashes(held).tolist()} == LIVE
    small = reader.held_out(1 / 40)
    limit = int(2.0**64 / 40)
    assert {names[value] for value in reader.key_hashes(small).tolist()} == {
        key for value, key in names.items() if value < limit and key in LIVE
    }
    assert int(reader.bucket_counts("latents@24").sum()) == len(LIVE)
    reader.close()


def test_rejects_of_retired_samples_do_not_count(tmp_path: Path) -> None:
    build(tmp_path, lacking=LACKING)
    before = report.inspect(opened(tmp_path))
    assert report.count_line(before) == "14 samples found = 10 cached + 4 rejected"
    change(tmp_path)
    for _ in range(2):
        found = report.inspect(opened(tmp_path))
        assert report.count_line(found) == "10 samples found = 8 cached + 2 rejected"
        assert [reject["key"] for reject in found["rejected"]] == ["k0", "k4"]
        assert found["columns"]["image"]["rejects_by_reason"] == {"not wanted": 2}
        assert found["columns"]["text"]["rejects_by_reason"] == {"not wanted": 1}
        assert [found["columns"][name]["samples"] for name in COLUMNS] == [8, 9, 10]
        assert (found["retired"], found["complete"]) == (6, True)
        assert check.verify(opened(tmp_path), full=True).faults == []
        publish_all(tmp_path)
    assert "6 more are retired" in report.as_text(found)


def test_the_equation_can_be_had_for_some_columns(tmp_path: Path) -> None:
    build(tmp_path, lacking=LACKING, unfinished=frozenset({("latents@24", "part-00001")}))
    found = report.inspect(opened(tmp_path), ("text",))
    assert report.count_line(found) == "14 samples found = 12 cached + 2 rejected"
    assert [*found["columns"]] == ["text"]


def test_while_new_parts_are_missing_their_samples_are_pending(tmp_path: Path) -> None:
    build(tmp_path)
    change(tmp_path, unfinished=True)
    found = report.inspect(opened(tmp_path))
    assert report.count_line(found) == "10 samples found = 8 cached + 0 rejected + 2 still to encode"
    verified = check.verify(opened(tmp_path))
    assert (verified.faults, verified.missing) == ([], 3)


def test_verify_finds_a_live_sample_that_is_nowhere(tmp_path: Path) -> None:
    """Retired positions may be there or not; a live one may not be missing."""
    build_changed(tmp_path, unfinished=frozenset({("image", "part-00000")}))
    cache = opened(tmp_path)
    (tmp_path / next(tmp_path.glob("columns/image/*/commits/part-00000.json"))).unlink()
    column, part = cache.column("image"), cache.plan()[0]
    table, rng = cache.table(part), np.random.default_rng(2)
    writer = PartWriter(cache.store, column, part.name)
    writer.add(0, "k0", [random_row(column, rng)])
    writer.add(1, "k1", [random_row(column, rng)])  # retired
    writer.reject(Sample(**table[3]), "retired, too")
    writer.reject(Sample(**table[4]), "live")
    assert writer.commit()
    (line,) = [str(fault) for fault in check.verify(cache).faults]
    assert line == "image, part-00000: 1 samples and 1 rejects are not the plan's 3"


def test_verify_reads_older_plans_too(changed: tuple[Path, Made], tmp_path: Path) -> None:
    build_changed(tmp_path)
    path = tmp_path / "plans" / "000001.json"
    path.write_bytes(path.read_bytes().replace(b'"samples": 14', b'"samples": 15'))
    (line,) = [str(fault) for fault in check.verify(opened(tmp_path)).faults]
    assert line.startswith("plan 1: ")


@pytest.mark.parametrize("part_size", [None, 3, 20])
def test_a_converted_cache_has_live_samples_only(
    changed: tuple[Path, Made], tmp_path: Path, part_size: int | None
) -> None:
    root, made = changed
    for word in ("parts copied", "nothing to do"):
        said = convert.convert(opened(root), open_store(tmp_path / "d"), ConvertOptions(part_size=part_size))
        assert word in said
    cache = opened(tmp_path / "d")
    assert all(part.retired == () for part in cache.plan())
    assert all("was" not in name for part in cache.plan() for row in cache.table(part) for name in row)
    assert same(read(tmp_path / "d"), made)
    assert check.verify(cache, full=True).faults == []
    assert report.count_line(report.inspect(cache)) == "10 samples found = 10 cached + 0 rejected"


def test_a_conversion_begun_before_the_change_is_another_one(tmp_path: Path) -> None:
    build(tmp_path / "a")
    convert.convert(opened(tmp_path / "a"), open_store(tmp_path / "d"), ConvertOptions())
    change(tmp_path / "a")
    with pytest.raises(UserError, match=r"begun by another command \(source "):
        convert.convert(opened(tmp_path / "a"), open_store(tmp_path / "d"), ConvertOptions())


def test_merging_keeps_live_samples_once(changed: tuple[Path, Made], tmp_path: Path) -> None:
    """k3 is retired with its old caption in the first source, k1 is retired there and live in the second."""
    root, made = changed
    other = build_of(tmp_path / "other", [1, 2, 20])
    sources = [opened(root), opened(tmp_path / "other")]
    said = merge.merge(sources, open_store(tmp_path / "d"), MergeOptions())
    assert "1 samples were in more than one source" in said
    wanted = {name: {**made[name], **{k: other[name][k] for k in ("k1", "k20")}} for name in COLUMNS}
    assert same(read(tmp_path / "d"), wanted)
    merge.merge([opened(root)], open_store(tmp_path / "one"), MergeOptions())
    assert same(read(tmp_path / "one"), made)
    assert report.inspect(opened(tmp_path / "d"))["complete"]


def test_an_export_has_live_samples_only(changed: tuple[Path, Made], tmp_path: Path) -> None:
    root, made = changed
    said = export.export(opened(root), open_store(tmp_path), ExportOptions(samples_per_tar=4))
    assert "10 samples in 3 tars; 3 tars written" in said
    found = {sample["json"]["key"]: sample for sample in exported_samples(tmp_path)}
    assert found.keys() == LIVE
    assert found[RECAPTIONED]["json"]["captions"] == ["edited"]
    for key in (RECAPTIONED, ADDED, "k5"):
        assert np.array_equal(found[key]["latents.npy"], made["latents@24"][key][0]["latents"])


def test_a_worker_with_an_older_plan_publishes_nothing_wrong(tmp_path: Path) -> None:
    """It does not know the sizes of the parts that a newer plan has added, and of which some are lacking."""
    build(tmp_path)
    old = opened(tmp_path).plan()
    change(tmp_path, unfinished=True)
    cache = opened(tmp_path)
    column, part = cache.column("image"), cache.plan()[-1]
    writer, table = PartWriter(cache.store, column, part.name), cache.table(part)
    writer.add(1, table[1]["key"], [random_row(column, np.random.default_rng(0))])
    writer.reject(Sample(**table[0]), "not wanted")
    writer.commit()
    publish(cache, column, old)
    assert part.name.encode() not in current(cache, column, old).part.tolist()
    found = report.inspect(cache, ("image",))
    assert report.count_line(found) == "10 samples found = 9 cached + 1 rejected"
    reader = CacheReader(tmp_path, ["image"])
    assert reader.num_samples == 9
    publish(cache, column, cache.plan())
    assert report.inspect(cache, ("image",)) == found


def test_a_part_of_which_nothing_is_left_is_nobodys_business(tmp_path: Path) -> None:
    build(tmp_path, lacking=frozenset({("image", "k6")}))
    publish_all(tmp_path)
    left = tuple(each for each in listed(14).samples if each.key not in {f"k{i}" for i in range(5, 10)})
    plan = plan_source(open_store(tmp_path), Listed(left), None)
    assert [part.name for part in plan] == ["part-00000", "part-00002"]
    assert report.count_line(report.inspect(opened(tmp_path))) == "9 samples found = 9 cached + 0 rejected"
    assert check.verify(opened(tmp_path), full=True).faults == []
    assert keys_of(read(tmp_path))["image"] == {each.key for each in left}
    cache = Cache.open(LocalStore(tmp_path))
    publish(cache, cache.column("image"), cache.plan(), rebuild=True)
    assert report.count_line(report.inspect(cache)) == "9 samples found = 9 cached + 0 rejected"
    assert keys_of(read(tmp_path))["image"] == {each.key for each in left}
    assert "retired" not in json.loads((tmp_path / "plans" / "000002.json").read_text())["parts"][0]
