"""What a writer accepts, and that a part is committed once, whole, or not at all."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import xxhash

from data_tools.cache import convert, merge
from data_tools.cache.convert import ConvertOptions
from data_tools.cache.fields import DTYPES, Field, finite
from data_tools.cache.generation import publish
from data_tools.cache.manifest import Cache
from data_tools.cache.merge import MergeOptions
from data_tools.cache.plan import plan_source
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import LocalStore
from data_tools.cache.tar_part import TarPart
from data_tools.cache.writer import PartWriter
from data_tools.errors import UserError
from tests.data_tools.caches import BUCKETS, COLUMNS, D, build, column, listed


def planned(root: Path, name: str = "image") -> LocalStore:
    store = LocalStore(root)
    plan_source(store, listed(4), 4)
    Cache.open(store).declare(column(name))
    return store


def filled(store: LocalStore, value: float) -> PartWriter:
    """A writer of part 0 of `image`, every embedding full of `value`."""
    writer = PartWriter(store, column("image"), "part-00000")
    for index in range(4):
        writer.add(index, f"k{index}", [{"image_embeds": np.full(D, value, dtype=np.float32)}])
    return writer


def test_of_two_writers_one_commits_and_readers_see_that_one(tmp_path: Path) -> None:
    store = planned(tmp_path)
    first, second = filled(store, 1), filled(store, 2)
    assert second.commit() is True
    assert first.commit() is False
    reader = CacheReader(tmp_path, ["image"])
    assert (reader.gather("image", reader.rows("image")[0])["image_embeds"] == 2).all()


def test_of_many_racing_writers_exactly_one_commits(tmp_path: Path) -> None:
    store = planned(tmp_path)
    barrier, won = threading.Barrier(8), []

    def race(number: int) -> None:
        writer = filled(store, number)
        barrier.wait()
        if writer.commit():
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    reader = CacheReader(tmp_path, ["image"])
    assert (reader.gather("image", reader.rows("image")[0])["image_embeds"] == won[0]).all()


def test_an_attempt_without_its_commit_record_does_not_exist_for_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = planned(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "create", lambda *_: pytest.fail("killed here"))
        with pytest.raises(pytest.fail.Exception):
            filled(store, 1).commit()
    assert list(tmp_path.rglob("part-00000-*.npz")), "the attempt's objects were written"
    with pytest.raises(UserError, match="column image lacks part-00000"):
        CacheReader(tmp_path, ["image"])
    assert CacheReader(tmp_path, ["image"], allow_partial=True).num_samples == 0
    assert filled(store, 2).commit()
    assert CacheReader(tmp_path, ["image"]).num_samples == 4


def test_every_object_of_a_commit_is_recorded_with_its_size_and_hash(tmp_path: Path) -> None:
    build(tmp_path)
    cache = Cache.open(LocalStore(tmp_path))
    recorded = {}
    for name in COLUMNS:
        about = cache.column(name)
        assert about is not None
        for commit in cache.commits(about).values():
            recorded |= {item.name: (item.size, item.xxh3_128) for item in commit.objects}
    found = {}
    for path in tmp_path.glob("columns/*/*/parts/**/*"):
        if path.is_file():
            data = path.read_bytes()
            found[path.relative_to(tmp_path).as_posix()] = len(data), xxhash.xxh3_128_hexdigest(data)
    assert recorded == found


def test_rejects_are_kept_with_key_reason_and_place(tmp_path: Path) -> None:
    build(tmp_path, lacking=frozenset({("image", "k3")}))
    cache = Cache.open(LocalStore(tmp_path))
    commit = cache.commit(column("image"), "part-00000")
    assert commit is not None
    assert commit.rejects == ({"key": "k3", "reason": "not wanted", "place": "k3.png"},)
    assert (commit.samples, commit.rows) == (4, 4)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(D + 1, dtype=np.float32),
        np.zeros((1, D), dtype=np.float32),
        np.zeros(D, dtype=np.float64),
        np.zeros(D, dtype=">f4"),
        np.full(D, np.nan, dtype=np.float32),
        np.array([*range(D - 1), np.inf], dtype=np.float32),
    ],
    ids=["too long", "too deep", "float64", "big-endian", "NaN", "infinity"],
)
def test_a_row_that_does_not_fit_is_refused_and_named(tmp_path: Path, value: np.ndarray) -> None:
    writer = PartWriter(planned(tmp_path), column("image"), "part-00000")
    with pytest.raises(ValueError, match="image_embeds: "):
        writer.add(0, "k0", [{"image_embeds": value}])


def test_a_row_with_other_fields_is_refused(tmp_path: Path) -> None:
    writer = PartWriter(planned(tmp_path, "text"), column("text"), "part-00000")
    with pytest.raises(ValueError, match="text: found fields"):
        writer.add(0, "k0", [{"prompt_embeds": np.zeros(D, dtype=np.float32)}])


def test_a_refused_row_leaves_nothing_of_its_sample(tmp_path: Path) -> None:
    store = planned(tmp_path)
    writer = PartWriter(store, column("image"), "part-00000")
    good = {"image_embeds": np.ones(D, dtype=np.float32)}
    with pytest.raises(ValueError, match="NaN"):
        writer.add(0, "k0", [good, {"image_embeds": np.full(D, np.nan, dtype=np.float32)}])
    writer.add(1, "k1", [good])
    assert writer.commit()
    assert CacheReader(tmp_path, ["image"]).num_samples == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_stored_dtype_knows_its_nan_and_infinity(dtype: str) -> None:
    bits = np.array([0, 1.5, -3e4], dtype=np.float32)
    for special, expected in ((1.0, True), (np.nan, False), (np.inf, False), (-np.inf, False)):
        values = np.append(bits, np.float32(special))
        stored = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else values
        assert finite(stored.astype(DTYPES[dtype]), dtype) is expected


def test_a_field_of_an_unknown_dtype_cannot_be_declared() -> None:
    with pytest.raises(ValueError, match=r"int8.*wanted one of float16, bfloat16, float32"):
        Field("image_embeds", "int8", (D,))


def test_nothing_in_a_cache_says_where_it_was_made(tmp_path: Path) -> None:
    """Neither JSON, extent indices and generations (uncompressed npz) nor the headers of tars and arrays."""
    here = tmp_path / "somewhere-special"
    build(here / "zarr", buckets=BUCKETS, views=2)
    build(here / "tar", container=TarPart(4))
    for name in ("zarr", "tar"):
        cache = Cache.open(LocalStore(here / name))
        for about in map(cache.column, COLUMNS):
            assert about is not None
            publish(cache, about, cache.plan())
    cache = Cache.open(LocalStore(here / "tar"))
    convert.convert(cache, LocalStore(here / "converted"), ConvertOptions(format="zarr"))
    merge.merge([cache], LocalStore(here / "merged"), MergeOptions(part_size=3))
    files = [path for path in here.rglob("*") if path.is_file()]
    assert {".json", ".jsonl", ".npz", ".tar", ""} <= {path.suffix for path in files}
    for path in files:
        data = path.read_bytes()
        for word in (str(tmp_path), "somewhere-special", tmp_path.name, str(Path.home())):
            assert word.encode() not in data, (path, word)


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)

    def chunks():
        yield b"some"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.put("folder/object", chunks())
    assert store.names("folder") == []
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_create_never_replaces_and_put_does(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert store.create("a/b", b"first")
    assert not store.create("a/b", b"second")
    assert store.read("a/b") == b"first"
    store.put("a/b", [b"thi", b"rd"])
    assert store.read("a/b") == b"third"
    assert store.size("a/b") == 5
    assert store.size("a/c") is None
    assert store.names("a") == ["b"]


def test_json_files_are_for_people_too(tmp_path: Path) -> None:
    build(tmp_path)
    for path in tmp_path.glob("columns/*/column.json"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) > 10
        assert json.loads(text)["column"] == path.parent.name
