"""Parquet tables that hold the pictures themselves."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import UserError
from data_tools.sources.sample import Sample, Unusable
from tests.data_tools.tabular import opened, parquet, spoil, touch


def many(tmp_path: Path, count: int = 100, **more: list[Any]) -> Path:
    pictures = [f"picture {number}".encode() for number in range(count)]
    return parquet(
        tmp_path, {"image": pictures, "text": [f"c{n}" for n in range(count)], **more}, row_group=7
    )


def test_parquet_with_bytes_is_read_in_any_order(tmp_path: Path) -> None:
    source = opened(many(tmp_path))
    samples = list(source)
    assert source.count == 100 == len(samples)
    assert (samples[12].key, samples[12].captions) == ("row-00000012", ("c12",))
    assert samples[0].mtime_ns == (tmp_path / "t.parquet").stat().st_mtime_ns
    for number in [0, 1, 99, 50, 49, 7, 6, 98, 0]:
        assert source.read(samples[number]) == f"picture {number}".encode()


def test_many_threads_read_parquet_at_once(tmp_path: Path) -> None:
    source = opened(many(tmp_path, 500))
    samples = list(source)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(source.read, samples)) == [f"picture {n}".encode() for n in range(500)]


def test_a_key_column_names_rows_with_bytes(tmp_path: Path) -> None:
    path = many(tmp_path, 3, id=["x", None, "z"])
    assert [sample.key for sample in opened(path)] == ["x", "row-00000001", "z"]


def test_hugging_faces_bytes_and_path(tmp_path: Path) -> None:
    touch(tmp_path, "b.png")
    cells = [
        {"bytes": b"one", "path": None},
        {"bytes": None, "path": "b.png"},
        {"bytes": None, "path": "/etc/passwd"},
    ]
    source = opened(parquet(tmp_path, {"image": [*cells, None], "text": list("abcd")}))
    samples = list(source)
    assert [source.read(sample) for sample in samples[:2]] == [b"one", b"picture b.png"]
    with pytest.raises(Unusable, match="leads out"):
        source.read(samples[2])
    with pytest.raises(Unusable, match="no bytes in this row"):
        source.read(samples[3])


def test_a_picture_column_of_numbers_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--image-column: .*image is of type int64, wanted paths or bytes$"):
        opened(parquet(tmp_path, {"image": [1], "text": ["x"]}))


def test_listing_parquet_does_not_read_the_pictures(tmp_path: Path) -> None:
    path = many(tmp_path)
    source = opened(path)
    spoil(path, 0, "image")
    samples = list(source)
    assert len(samples) == 100
    with pytest.raises(Unusable, match=r"^a row group of the Parquet file cannot be read: "):
        source.read(samples[0])
    assert source.read(samples[7]) == b"picture 7"


def test_a_parquet_file_that_is_damaged_inside_rejects_and_does_not_fall_over(tmp_path: Path) -> None:
    source = opened(many(tmp_path))
    samples = list(source)
    os.truncate(tmp_path / "t.parquet", 500)
    with pytest.raises(
        Unusable, match=r"^(a row group of the|not a) Parquet file (that can be|cannot be) read: "
    ):
        source.read(samples[40])


def test_a_place_that_is_no_row_is_not_read(tmp_path: Path) -> None:
    source = opened(many(tmp_path, 3))
    for place in ("t.parquet:3", "t.parquet:-1", "3", "../t.parquet:0"):
        with pytest.raises(Unusable):
            source.read(Sample("k", (), place, -1, 0))


@pytest.mark.parametrize("name", ["__key__", "key", "id", "image_id", "uid"])
def test_whole_numbers_are_keys_too(tmp_path: Path, name: str) -> None:
    assert [sample.key for sample in opened(many(tmp_path, 3, **{name: [7, None, 5]}))] == [
        *("7", "row-00000001", "5")
    ]


def test_a_column_with_a_value_twice_is_no_key_and_the_next_one_is(tmp_path: Path) -> None:
    twice = many(tmp_path, 3, id=["x", "y", "x"])
    assert [sample.key for sample in opened(twice)] == ["row-00000000", "row-00000001", "row-00000002"]
    both = many(tmp_path, 3, uid=[3, 4, 5], image_id=[1, 1, 2], id=[None, None, None], key=[0.1, 0.2, 0.3])
    assert [sample.key for sample in opened(both)] == ["3", "4", "5"]


def test_keys_stay_with_their_rows_when_one_is_taken_away(tmp_path: Path) -> None:
    before = {sample.key: sample.captions for sample in opened(many(tmp_path, 3, id=[11, 12, 13]))}
    path = parquet(tmp_path, {"image": [b"1", b"2"], "text": ["c1", "c2"], "id": [12, 13]})
    after = {sample.key: sample.captions for sample in opened(path)}
    assert after == {key: before[key] for key in ("12", "13")}
