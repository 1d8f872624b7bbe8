"""Tables with pictures or their paths, and what is listed of them."""

from pathlib import Path
from typing import Any

import pytest

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


def opened(path: Path, **options: Any) -> TableSource:
    return TableSource.open(str(path), SourceOptions(**options))


def captions(path: Path, **options: Any) -> dict[str, tuple[str, ...]]:
    return {sample.key: sample.captions for sample in opened(path, **options)}


def problems(path: Path, **options: Any) -> dict[str, str]:
    return {sample.key: sample.problem for sample in opened(path, **options) if sample.problem}
