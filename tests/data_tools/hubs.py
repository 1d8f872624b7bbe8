"""Hugging Face datasets on disk, made with the `datasets` library."""

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools.sources.hub import HubSource
from data_tools.sources.parquet_pictures import ParquetPictures
from data_tools.sources.sample import Source, SourceOptions

datasets = pytest.importorskip("datasets")


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, 0, 0)).save(out, "PNG")
    return out.getvalue()


def made(count: int = 20, **more: Any) -> Any:
    cells = {
        "image": [{"bytes": picture(number), "path": None} for number in range(count)],
        "text": [f"c{number}" for number in range(count)],
        **more,
    }
    dataset = datasets.Dataset.from_dict(cells)
    return dataset.cast_column("image", datasets.Image())


def saved(tmp_path: Path, dataset: Any) -> Path:
    dataset.save_to_disk(tmp_path / "data")
    return tmp_path / "data"


def parquets(tmp_path: Path, *counts: int) -> Path:
    (tmp_path / "pq").mkdir()
    for number, count in enumerate(counts):
        made(count).to_parquet(tmp_path / "pq" / f"{number}.parquet")
    return tmp_path / "pq"


def arrows(tmp_path: Path, *counts: int) -> Path:
    (tmp_path / "arrow").mkdir()
    for number, count in enumerate(counts):
        made(count).save_to_disk(tmp_path / "saved")
        (file,) = (tmp_path / "saved").glob("*.arrow")
        shutil.copy(file, tmp_path / "arrow" / f"{number}.arrow")
        shutil.rmtree(tmp_path / "saved")
    return tmp_path / "arrow"


def opened(path: object, **options: Any) -> HubSource | ParquetPictures:
    return HubSource.open(str(path), SourceOptions(**options))


def check_in_any_order(source: Source, expected: list[bytes]) -> None:
    samples = list(source)
    assert len(samples) == len(expected)
    last = len(expected) - 1
    for number in [0, 1, last, last // 2, 2, last, 0]:
        assert source.read(samples[number]) == expected[number]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, samples)) == expected
