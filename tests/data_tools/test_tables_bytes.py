"""Parquet tables that hold the pictures themselves."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import UserError
from data_tools.sources.sample import Sample, Unusable
from tests.data_tools.tabular import opened, parquet, touch


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
    with pytest.importorskip("pyarrow.parquet").ParquetFile(path) as file:
        pictures = file.metadata.row_group(0).column(0)
    data = bytearray(path.read_bytes())
    start = pictures.dictionary_page_offset or pictures.data_page_offset
    data[start : start + pictures.total_compressed_size] = b"\xff" * pictures.total_compressed_size
    path.write_bytes(data)
    samples = list(source)
    assert len(samples) == 100
    with pytest.raises(Unusable, match="row 0"):
        source.read(samples[0])
    assert source.read(samples[7]) == b"picture 7"


def test_a_parquet_file_that_is_damaged_inside_rejects_and_does_not_fall_over(tmp_path: Path) -> None:
    source = opened(many(tmp_path))
    samples = list(source)
    os.truncate(tmp_path / "t.parquet", 500)
    with pytest.raises(Unusable, match="row 40"):
        source.read(samples[40])


def test_a_place_that_is_no_row_is_not_read(tmp_path: Path) -> None:
    source = opened(many(tmp_path, 3))
    for place in ("t.parquet:3", "t.parquet:-1", "3", "../t.parquet:0"):
        with pytest.raises(Unusable):
            source.read(Sample("k", (), place, -1, 0))
