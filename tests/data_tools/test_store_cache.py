"""A whole cache on S3: written, raced for, read bit for bit, damaged and found out."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_tools.cache.manifest import Cache, Commit
from data_tools.cache.plan import plan_source
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import Store, open_store
from data_tools.cache.verify import hash_faults, size_faults
from data_tools.cache.writer import PartWriter
from data_tools.errors import DataFault, UserError
from tests.data_tools.caches import COLUMNS, D, Made, build, column, listed, read, same
from tests.precompute.command import COLUMNS as REAL_COLUMNS
from tests.precompute.command import assert_same_records, inspect, precompute, records
from tests.s3 import BUCKET, S3Server
from tests.train import runs


@pytest.fixture(scope="module")
def built(s3: S3Server) -> tuple[str, Made]:
    """A cache that tests leave as it is."""
    place = s3.place()
    return place, build(place)


@pytest.fixture
def damaged(s3: S3Server, tmp_path: Path) -> Iterator[Store]:
    """A cache of this test's own, uploaded from a folder as any tool would."""
    build(tmp_path / "cache")
    store = open_store(s3.place())
    for path in sorted(p for p in (tmp_path / "cache").rglob("*") if p.is_file()):
        store.put(path.relative_to(tmp_path / "cache").as_posix(), [path.read_bytes()])
    yield store
    store.close()


def committed(store: Store) -> Commit:
    """A part of column `image`."""
    commit = Cache.open(store).commit(column("image"), "part-00001")
    assert commit is not None
    return commit


def payload(store: Store) -> str:
    """The object with that part's embeddings."""
    return next(item.name for item in committed(store).objects if "image_embeds/c/" in item.name)


def test_everything_that_was_written_is_read_back_bit_for_bit(built: tuple[str, Made]) -> None:
    place, made = built
    assert same(read(place), made)


def test_it_holds_the_very_objects_of_a_cache_in_a_folder(built: tuple[str, Made], tmp_path: Path) -> None:
    def shapes(store: Store, folder: str = "") -> list[tuple[str, int]]:
        """Paths, without what is random in them, and sizes."""
        found = []
        for name in store.names(folder):
            path = f"{folder}/{name}" if folder else name
            size = store.size(path)
            found += shapes(store, path) if size is None else [(re.sub("-[0-9a-f]{8}", "", path), size)]
        return sorted(found)

    build(tmp_path)
    assert shapes(open_store(tmp_path)) == shapes(open_store(built[0]))


def test_a_cache_moves_between_a_folder_and_s3_without_a_change(s3: S3Server, tmp_path: Path) -> None:
    made = build(tmp_path)
    store = open_store(s3.place())
    for path in tmp_path.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(tmp_path).as_posix(), [path.read_bytes()])
    assert same(read(store.url), made)


def test_nothing_is_written_outside_the_prefix(s3: S3Server) -> None:
    before = set(s3.objects())
    place = s3.place()
    build(place)
    new = set(s3.objects()) - before
    assert new
    assert all(f"s3://{BUCKET}/{key}".startswith(f"{place}/") for key in new)


def test_many_threads_read_one_cache(built: tuple[str, Made]) -> None:
    place, made = built
    reader = CacheReader(place, ["image"])
    rows = reader.rows("image", np.arange(14))[0]
    expected = np.array([made["image"][f"k{i}"][0]["image_embeds"] for i in range(14)])
    wrong = []

    def work(seed: int) -> None:
        for _ in range(5):
            chosen = np.random.default_rng(seed).integers(0, 14, 8)
            if not np.array_equal(reader.gather("image", rows[chosen])["image_embeds"], expected[chosen]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader.close()
    assert not wrong


def test_of_racing_committers_one_wins_and_readers_see_that_one(s3: S3Server) -> None:
    store = open_store(s3.place())
    plan_source(store, listed(4), 4)
    Cache.open(store).declare(column("image"))
    barrier, won, lost = threading.Barrier(4), [], []

    def commit(number: int) -> None:
        own = open_store(store.url)  # as a process of its own would
        writer = PartWriter(own, column("image"), "part-00000")
        for index in range(4):
            writer.add(index, f"k{index}", [{"image_embeds": np.full(D, number, dtype=np.float32)}])
        barrier.wait()
        (won if writer.commit() else lost).append(number)

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 3)
    reader = CacheReader(store.url, ["image"])
    rows = reader.rows("image", np.arange(4))[0]
    assert (reader.gather("image", rows)["image_embeds"] == won[0]).all()
    reader.close()


def test_a_part_without_its_commit_record_does_not_exist_for_readers(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_tools.cache.object_store import ObjectStore

    place = s3.place()
    with monkeypatch.context() as patch:
        create = ObjectStore.create
        patch.setattr(
            ObjectStore,
            "create",
            lambda self, name, data: "/commits/" not in name and create(self, name, data),
        )
        with pytest.raises(AssertionError):
            build(place)
    with pytest.raises(UserError, match=f"^--cache: {place} is unfinished: column image lacks part-00000"):
        CacheReader(place, ["image"])


def test_verify_finds_a_truncated_a_missing_and_a_changed_object(damaged: Store) -> None:
    commit = committed(damaged)
    assert hash_faults(damaged, commit) == []
    name = payload(damaged)
    whole = damaged.read(name)
    damaged.put(name, [whole[:-1]])
    short = f"{name} has {len(whole) - 1} bytes, wanted {len(whole)} bytes"
    assert size_faults(damaged, commit) == hash_faults(damaged, commit) == [short]
    damaged.put(name, [whole[:-1] + bytes([whole[-1] ^ 1])])
    assert size_faults(damaged, commit) == []
    assert hash_faults(damaged, commit) == [f"{name} has changed bytes (xxh3-128 differs)"]
    damaged.remove(name)
    assert size_faults(damaged, commit) == [f"{name} is missing, wanted {len(whole)} bytes"]


def test_a_damaged_part_is_an_error_that_names_it(damaged: Store) -> None:
    name = payload(damaged)
    whole = damaged.read(name)
    where = f"^--cache: {damaged}: column image, part-00001: .*precompute --repair"

    def read_all() -> None:
        reader = CacheReader(damaged.url, ["image"])
        reader.gather("image", reader.rows("image", np.arange(14))[0])

    read_all()
    for wrong in (whole[:-1], whole[:17] + bytes([whole[17] ^ 64]) + whole[18:]):
        damaged.put(name, [wrong])
        with pytest.raises(DataFault, match=where):
            read_all()
    damaged.put(name, [whole])
    reader = CacheReader(damaged.url, ["image"])
    damaged.put(name, [whole[:10]])
    with pytest.raises(DataFault, match=where):
        reader.gather("image", reader.rows("image", np.arange(14))[0])
    damaged.remove(name)
    with pytest.raises(DataFault, match=where):
        reader.gather("image", reader.rows("image", np.arange(14))[0])


def test_a_url_where_no_cache_is_says_so(s3: S3Server) -> None:
    place = s3.place()
    with pytest.raises(UserError, match=rf"^--cache: {place} is not a cache \(it has no cache.json\)$"):
        CacheReader(place, ["image"])


def test_a_mistake_in_the_place_is_one_line_and_exit_code_2(s3: S3Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "data_tools", "inspect", "s3://no-such-bucket/x"],
        capture_output=True,
        text=True,
        cwd=runs.ROOT,
    )
    assert done.stderr == "CACHE: s3://no-such-bucket/x: there is no such bucket\n"
    assert done.returncode == 2


def test_precompute_and_train_prior_work_on_s3_as_in_a_folder(
    s3: S3Server, cache: Path, pocket: Path, pictures: Path, tmp_path: Path
) -> None:
    place = s3.place()
    printed = precompute(pictures, place, pocket, "--dtype", "fp32")
    assert printed.splitlines()[-1] == "24 samples found = 22 cached + 2 rejected"
    assert "nothing to do" in precompute(pictures, place, pocket, "--dtype", "fp32")
    assert_same_records(records(place, REAL_COLUMNS), records(cache, REAL_COLUMNS))
    assert inspect(place)["columns"].keys() == {*COLUMNS[:2], "latents@64"}
    flags = ("--prior-model", str(pocket / "prior"), "--validation-fraction", "0.2", "--order", "global")
    outputs = [runs.train("prior", at, tmp_path / name, *flags) for at, name in ((cache, "a"), (place, "b"))]
    assert runs.metrics(outputs[0]) == runs.metrics(outputs[1])
    first, second = (runs.weights(output / runs.TRAINED["prior"]) for output in outputs)
    assert runs.same_tensors(first, second)


def test_a_cache_on_s3_remembers_a_local_model_by_its_bare_name(
    s3: S3Server, pocket: Path, pictures: Path, tmp_path: Path
) -> None:
    place = s3.place()
    precompute(pictures, place, pocket, "--columns", "image,text")
    ended = runs.program("prior", *runs.arguments(place, tmp_path / "out"))
    assert ended.lines == [f"--prior-model: missing, and {place} was made with a local folder (prior)"]
    assert ended.code == 2
