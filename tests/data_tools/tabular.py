"""Tables with pictures or their paths, and what is listed of them."""

from pathlib import Path
from typing import Any

import pytest

from data_tools.sources.parquet_pictures import ParquetPictures
from data_tools.sources.sample import SourceOptions
from data_tools.sources.tables import TableSource


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"picture {name}".encode())


def table(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


def parquet(folder: Path, columns: dict[str, Any], row_group: int = 1000, name: str = "t.parquet") -> Path:
    arrow = pytest.importorskip("pyarrow")
    writer = pytest.importorskip("pyarrow.parquet")
    writer.write_table(arrow.table(columns), folder / name, row_group_size=row_group)
    return folder / name


def spoil(path: Path, group: int, column: str) -> None:
    """Overwrite a column of a row group."""
    with pytest.importorskip("pyarrow.parquet").ParquetFile(path) as file:
        group_of = file.metadata.row_group(group)
        chunks = [group_of.column(number) for number in range(group_of.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)


def opened(path: Path, **options: Any) -> TableSource | ParquetPictures:
    return TableSource.open(str(path), SourceOptions(**options))


def captions(path: Path, **options: Any) -> dict[str, tuple[str, ...]]:
    return {sample.key: sample.captions for sample in opened(path, **options)}


def problems(path: Path, **options: Any) -> dict[str, str]:
    return {sample.key: sample.problem for sample in opened(path, **options) if sample.problem}
