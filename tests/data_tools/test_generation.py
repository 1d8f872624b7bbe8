"""Generations: what one opens instead of thousands of commit records."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import xxhash

from data_tools.cache.generation import Generation, current, publish
from data_tools.cache.manifest import NULL_PART, Cache, column_folder
from data_tools.cache.plan import plan_source
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import LocalStore
from data_tools.cache.writer import PartWriter
from data_tools.errors import DataFault
from data_tools.sources import Sample
from tests.data_tools.caches import BUCKETS, COLUMNS, Made, build, column, listed, random_row, read, same


def publish_all(root: Path) -> None:
    cache = Cache.open(LocalStore(root))
    for name in cache.column_names():
        about = cache.column(name)
        assert about is not None
        publish(cache, about, cache.plan())


def newest(root: Path, name: str) -> Generation:
    return Generation.load(generations(root, name)[-1].read_bytes())


def commit_prompts(root: Path, name: str, *prompts: str) -> None:
    """A set of prompts, with the number of each as all values of its row."""
    writer = PartWriter(LocalStore(root), column("text"), name)
    writer.prompts = prompts
    for number, prompt in enumerate(prompts):
        row = {"prompt_embeds": (12,), "text_encoder_hidden_states": (70 + number, 12)}
        writer.add(number, prompt, [{f: np.full(s, number, np.float32) for f, s in row.items()}])
    assert writer.commit()


def generations(root: Path, name: str) -> list[Path]:
    return sorted(root.glob(f"columns/{name}/*/generations/*.npz"))


def commit_part(root: Path, name: str, number: int) -> None:
    """Encode one more part of a column, with rows drawn from the part's number."""
    store = LocalStore(root)
    cache, rng = Cache.open(store), np.random.default_rng(number)
    about, part = column(name), cache.plan()[number]
    writer = PartWriter(store, about, part.name)
    for index, entry in enumerate(cache.table(part)):
        count = len(entry["captions"]) if name == "text" else 1
        writer.add(index, Sample(**entry).key, [random_row(about, rng) for _ in range(count)])
    assert writer.commit()


def test_a_published_cache_opens_without_its_commit_records(tmp_path: Path) -> None:
    made = build(tmp_path, lacking=frozenset({("image", "k3"), ("text", "k11")}))
    before = read(tmp_path)
    publish_all(tmp_path)
    for commits in tmp_path.glob("columns/*/*/commits"):
        shutil.rmtree(commits)
    assert same(read(tmp_path), before)
    assert same(before, {name: {k: v for k, v in made[name].items() if k in before[name]} for name in made})


def test_publishing_again_without_news_writes_nothing(tmp_path: Path) -> None:
    build(tmp_path)
    for _ in range(2):
        publish_all(tmp_path)
    assert [path.name for path in generations(tmp_path, "text")] == ["000001.npz"]


def test_parts_committed_after_a_generation_are_found_without_the_next(tmp_path: Path) -> None:
    build(tmp_path, unfinished=frozenset((name, "part-00001") for name in COLUMNS))
    publish_all(tmp_path)
    for name in COLUMNS:
        commit_part(tmp_path, name, 1)
    assert len(read(tmp_path)["text"]) == 15  # and the null condition


def test_the_next_generation_is_the_same_as_one_made_at_once(tmp_path: Path) -> None:
    build(tmp_path, unfinished=frozenset((name, "part-00001") for name in COLUMNS))
    publish_all(tmp_path)
    for name in COLUMNS:
        commit_part(tmp_path, name, 1)
    publish_all(tmp_path)
    cache = Cache.open(LocalStore(tmp_path))
    for name in COLUMNS:
        about = cache.column(name)
        assert about is not None
        second = newest(tmp_path, name)
        publish(cache, about, cache.plan(), rebuild=True)
        assert [path.name for path in generations(tmp_path, name)] == ["000001.npz", "000002.npz"]
        for path in generations(tmp_path, name):
            path.unlink()
        publish(cache, about, cache.plan())
        for key, value in vars(second).items():
            assert np.array_equal(value, getattr(newest(tmp_path, name), key)), key


def test_a_reader_keeps_the_samples_it_opened_while_others_commit(tmp_path: Path) -> None:
    build(tmp_path, unfinished=frozenset((name, "part-00001") for name in COLUMNS))
    readers = [CacheReader(tmp_path, ["image", "text"], allow_partial=True) for _ in range(2)]
    before = [r.gather("text", r.rows("text")[0])["prompt_embeds"].copy() for r in readers]
    for name in COLUMNS:
        commit_part(tmp_path, name, 1)
    publish_all(tmp_path)
    for reader, wanted in zip(readers, before, strict=True):
        assert reader.num_samples == 9
        assert np.array_equal(reader.gather("text", reader.rows("text")[0])["prompt_embeds"], wanted)
    assert CacheReader(tmp_path, ["image", "text"]).num_samples == 14


def test_of_two_that_publish_at_once_one_generation_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path)
    create = LocalStore.create

    def overtaken(store: LocalStore, name: str, data: bytes) -> bool:
        create(store, name, data)  # the other worker was first
        return create(store, name, data)

    monkeypatch.setattr(LocalStore, "create", overtaken)
    publish_all(tmp_path)
    assert len(generations(tmp_path, "image")) == 1
    assert len(read(tmp_path)["image"]) == 15


@pytest.mark.parametrize("byte", [0, 31, 40, -5])
def test_a_damaged_generation_is_refused_and_rebuilding_mends_it(tmp_path: Path, byte: int) -> None:
    build(tmp_path)
    publish_all(tmp_path)
    path = generations(tmp_path, "image")[0]
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataFault, match=r"000001\.npz has changed bytes .*--repair"):
        CacheReader(tmp_path, ["image"])
    cache = Cache.open(LocalStore(tmp_path))
    publish(cache, column("image"), cache.plan(), rebuild=True)
    assert CacheReader(tmp_path, ["image"]).num_samples == 14


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.03, 1 / 32, 0.2, 0.9])
def test_held_out_samples_are_those_of_the_smallest_key_hashes(tmp_path: Path, fraction: float) -> None:
    """Below 1/32 the generation answers, above it the indices do; both know which samples columns share."""
    lacking = {
        (name, f"k{i}") for i in range(0, 600, 7) for name in ("image", "text") if i % 2 == (name == "text")
    }
    store, rng = LocalStore(tmp_path), np.random.default_rng(0)
    plan = plan_source(store, listed(600), 50)
    cache = Cache.open(store)
    for name in ("image", "text"):
        about = column(name)
        cache.declare(about)
        for part in plan:
            writer = PartWriter(store, about, part.name)
            for index, entry in enumerate(cache.table(part)):
                if (name, entry["key"]) not in lacking:
                    writer.add(index, entry["key"], [random_row(about, rng)])
            writer.commit()
    reader = CacheReader(tmp_path, ["image", "text"])
    assert reader.num_samples == 600 - len({key for _, key in lacking})
    hashes = reader.key_hashes()
    wanted = [i for i in np.argsort(hashes, kind="stable").tolist() if int(hashes[i]) < fraction * 2**64]
    assert reader.held_out(fraction).tolist() == wanted


@pytest.mark.parametrize("published", [False, True])
def test_rejects_lengths_and_prompts_are_the_same_however_many_generations(
    tmp_path: Path, published: bool
) -> None:
    lacking = frozenset({("text", "k1"), ("text", "k12"), ("text", "k13")})
    made = build(tmp_path, lacking=lacking, unfinished=frozenset({("text", "part-00001")}))
    commit_prompts(tmp_path, "prompts-00000002", "b", "a\u2028c", "d")
    if published:
        publish_all(tmp_path)
    commit_part(tmp_path, "text", 1)
    commit_prompts(tmp_path, "prompts-00000001", "d", "e")
    publish_all(tmp_path)
    found = newest(tmp_path, "text")
    rejects = {(reject["part"], reject["key"], reject["reason"]) for reject in found.rejects()}
    parts = {"k1": "part-00000", "k12": "part-00002", "k13": "part-00002"}
    assert rejects == {(parts[key], key, "not wanted") for _, key in lacking}
    lengths = [
        len(row["text_encoder_hidden_states"])
        for key, rows in {**read_text(tmp_path), **made["text"]}.items()
        for row in rows
        if key
    ]
    assert found.lengths[1].tolist() == np.bincount(lengths).tolist()  # neither null nor prompts
    assert not found.lengths[0].any()
    assert found.prompts()["a\u2028c"] == ("prompts-00000002", 1)
    assert found.prompts()["e"] == ("prompts-00000001", 1)
    assert found.prompts()["d"] in {("prompts-00000002", 2), ("prompts-00000001", 0)}
    assert len(found.prompts()) == 4


def read_text(root: Path) -> dict[str, list]:
    return read(root, ("text",))["text"]


def test_prompts_change_nothing_in_the_samples(tmp_path: Path) -> None:
    build(tmp_path)
    before = read(tmp_path)
    commit_prompts(tmp_path, "prompts-0000aaaa", "a", "b")
    for _ in range(2):
        assert same(read(tmp_path), before)
        publish_all(tmp_path)
    reader = CacheReader(tmp_path, ["text"])
    assert reader.num_samples == 14
    assert (reader.prompts("text")["b"]["prompt_embeds"] == 1).all()
    assert len(reader.prompts("text")["b"]["text_encoder_hidden_states"]) == 71


@pytest.mark.parametrize("views", [1, 2])
def test_samples_of_each_shape_are_counted_by_part(tmp_path: Path, views: int) -> None:
    made = build(tmp_path, buckets=BUCKETS, views=views, lacking=frozenset({("latents@24", "k6")}))
    publish_all(tmp_path)
    found = newest(tmp_path, "latents@24")
    triples = zip(found.shape_part.tolist(), found.shape.tolist(), found.shape_samples.tolist())
    assert {(part, tuple(shape)): count for part, shape, count in triples} == shapes_in(made)
    assert found.shape.dtype == np.int32
    assert len(newest(tmp_path, "image").shape) == 0


def shapes_in(made: Made) -> dict[tuple[int, tuple[int, ...]], int]:
    """(part of 5 samples, shape of the first row) → samples."""
    counts: dict[tuple[int, tuple[int, ...]], int] = {}
    for key, rows in made["latents@24"].items():
        place = int(key[1:]) // 5, rows[0]["latents"].shape
        counts[place] = counts.get(place, 0) + 1
    return counts


def test_bytes_seconds_and_containers_of_each_part_are_its_records(tmp_path: Path) -> None:
    build(tmp_path)
    publish_all(tmp_path)
    cache, found = Cache.open(LocalStore(tmp_path)), newest(tmp_path, "text")
    for place, (name, commit) in enumerate(sorted(cache.commits(column("text")).items())):
        assert found.part[place] == name.encode()
        assert (found.samples[place], found.rows[place]) == (commit.samples, commit.rows)
        assert found.field_bytes[place].tolist() == list(commit.field_bytes.values())
        assert found.stored_bytes[place] == sum(item.size for item in commit.objects)
        assert found.container[place] == b"zarr"


def test_a_generation_of_an_older_program_counts_as_none(tmp_path: Path) -> None:
    build(tmp_path)
    publish_all(tmp_path)
    before, (path,) = read(tmp_path), generations(tmp_path, "text")
    buffer = io.BytesIO()
    arrays = vars(newest(tmp_path, "text"))
    np.savez(buffer, **{name: arrays[name] for name in ("part", "rows", "index")})
    path.write_bytes(xxhash.xxh3_128_hexdigest(buffer.getvalue()).encode() + buffer.getvalue())
    assert same(read(tmp_path), before)
    publish_all(tmp_path)
    assert [path.name for path in generations(tmp_path, "text")] == ["000001.npz", "000002.npz"]
    assert len(newest(tmp_path, "text").part) == 4


def test_a_generation_holds_the_null_condition_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    build(tmp_path)
    publish_all(tmp_path)
    cache, about = Cache.open(LocalStore(tmp_path)), column("image")
    assert NULL_PART.encode() in current(cache, about, cache.plan()).part.tolist()
    assert not list((tmp_path / column_folder(about)).glob("**/.tmp-*"))
