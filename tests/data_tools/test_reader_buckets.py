"""Samples by shape, and what a batch of one shape is."""

from pathlib import Path

import numpy as np
import pytest

from data_tools.cache.reader import CacheReader
from tests.data_tools import caches

COLUMN = "latents@24"
LACKING = frozenset([("image", "k1"), ("image", "k7"), (COLUMN, "k8")])


def reader_of(root: Path) -> CacheReader:
    return CacheReader(root, ["image", COLUMN])


@pytest.mark.parametrize("lacking", [frozenset(), LACKING], ids=["whole", "gaps"])
def test_each_sample_is_in_the_bucket_of_its_shape_and_at_one_place(
    tmp_path: Path, lacking: frozenset[tuple[str, str]]
) -> None:
    caches.build(tmp_path, buckets=caches.BUCKETS, lacking=lacking)
    reader = reader_of(tmp_path)
    shapes = reader.buckets(COLUMN)
    assert shapes == sorted((4, h, w) for h, w in caches.BUCKETS)
    counts = reader.bucket_counts(COLUMN)
    assert counts.sum() == reader.num_samples == 14 - len(lacking)
    samples = [reader.in_bucket(COLUMN, b, np.arange(count)) for b, count in enumerate(counts)]
    assert sorted(np.concatenate(samples).tolist()) == list(range(reader.num_samples))
    for bucket, members in enumerate(samples):
        rows = reader.rows(COLUMN, members)[0]
        assert reader.gather(COLUMN, rows)["latents"].shape == (len(members), *shapes[bucket])
        found, places = reader.bucket_of(COLUMN, members)
        assert found.tolist() == [bucket] * len(members)
        assert places.tolist() == list(range(len(members)))


def test_places_of_a_bucket_may_be_asked_for_in_any_order(tmp_path: Path) -> None:
    caches.build(tmp_path, buckets=caches.BUCKETS)
    reader = reader_of(tmp_path)
    all_of_it = reader.in_bucket(COLUMN, 1, np.arange(reader.bucket_counts(COLUMN)[1]))
    assert reader.in_bucket(COLUMN, 1, np.array([3, 0, 3])).tolist() == all_of_it[[3, 0, 3]].tolist()
    mixed = np.array([13, 0, 5, 1])
    bucket, place = reader.bucket_of(COLUMN, mixed)
    back = [int(reader.in_bucket(COLUMN, b, np.array([p]))[0]) for b, p in zip(bucket, place)]
    assert back == mixed.tolist()


def test_rows_of_two_shapes_make_no_batch(tmp_path: Path) -> None:
    caches.build(tmp_path, buckets=caches.BUCKETS)
    reader = reader_of(tmp_path)
    rows = reader.rows(COLUMN, np.array([0, 1]))[0]
    with pytest.raises(ValueError, match=r"latents: rows of shapes \[4, 2, 5\], \[4, 3, 3\] make no batch"):
        reader.gather(COLUMN, rows)


def test_a_column_of_one_shape_has_no_buckets(tmp_path: Path) -> None:
    caches.build(tmp_path)
    assert reader_of(tmp_path).buckets(COLUMN) == []


def test_lengths_are_those_of_the_rows_read(tmp_path: Path) -> None:
    caches.build(tmp_path)
    reader = CacheReader(tmp_path, ["text"])
    rows = np.array([20, 0, 7, 7])
    assert reader.lengths("text", rows).tolist() == reader.gather("text", rows)["n_tokens"].tolist()


def test_rows_are_read_into_the_memory_a_caller_gives(tmp_path: Path) -> None:
    caches.build(tmp_path)
    reader = CacheReader(tmp_path, ["text"])
    given = []

    def empty(shape: tuple[int, ...], dtype: np.dtype[np.float32]) -> np.ndarray:
        given.append(np.full(shape, np.nan, dtype))  # what is not written stands out
        return given[-1]

    rows = np.array([3, 9, 4])
    batch, plain = reader.gather("text", rows, empty), reader.gather("text", rows)
    assert batch["prompt_embeds"] is given[0]
    assert batch["text_encoder_hidden_states"] is given[1]
    for name, value in plain.items():
        assert np.array_equal(batch[name], value), name


def test_payload_bytes_are_the_bytes_of_all_rows(tmp_path: Path) -> None:
    made = caches.build(tmp_path)
    reader = CacheReader(tmp_path, ["image", "text"])
    rows = [row for column in ("image", "text") for rows in made[column].values() for row in rows]
    assert reader.payload_bytes(["image", "text"]) == sum(v.nbytes for row in rows for v in row.values())
