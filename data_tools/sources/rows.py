"""Rows of a table file (CSV, TSV, JSON lines, Parquet), one after the other, and which columns are used."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.errors import UserError
from data_tools.sources.extras import required
from data_tools.sources.sample import SourceOptions

IMAGE_COLUMNS = ("image", "image_path", "file_name", "path", "filename", "jpg", "image_bytes", "bytes")
"Tried in this order if the user names none."
KEY_COLUMNS = ("__key__", "key", "id")
"The first that is there names rows whose pictures are bytes."
MAX_LINE = 1 << 24
"Characters of a line; the rest of a longer one counts as the next."
BATCH_ROWS = 1024
"Of a Parquet file, read at once; of its caption columns alone."
HEAD_ROWS = 100
"Of JSON lines, whose columns may differ from row to row."


class Row(NamedTuple):
    number: int
    "Counted from 0."
    cells: dict[str, Any]
    fault: str = ""
    "Why it cannot be read."
    escaped: bool = False
    "Bytes that are not UTF-8 stand in its strings as `surrogateescape` leaves them."


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are used."""

    image: str
    captions: tuple[str, ...]
    key: str | None


def chosen(what: str, found: Sequence[str], options: SourceOptions, image: str | None = None) -> Columns:
    """The columns that the options name, or the usual ones. Raises `UserError` that names those there are.

    `image`: the picture column if the user names none. A table of nothing but pictures has no captions.
    """
    has = f"it has: {', '.join(found) or 'none'}"
    usual = image or next((name for name in IMAGE_COLUMNS if name in found), None)
    image = options.image_column or usual
    if image is None:
        raise UserError(f"--image-column: {what} has none of the columns {', '.join(IMAGE_COLUMNS)}; {has}")
    if image not in found:
        raise UserError(f"--image-column: {what} has no column {image!r}; {has}")
    key = next((name for name in KEY_COLUMNS if name in found), None)
    captions = options.caption_columns
    if captions == SourceOptions().caption_columns and set(found) <= {image, *KEY_COLUMNS}:
        captions = ()
    if missing := [name for name in captions if name not in found]:
        raise UserError(f"--caption-column: {what} has no column {', '.join(map(repr, missing))}; {has}")
    for name in (image, *captions, *([key] if key else [])):
        if found.count(name) > 1:
            raise UserError(f"--data: {what} has two columns {name!r}; rename one")
    return Columns(image, captions, key)


def header(path: Path) -> list[str]:
    """The names of the columns. Raises `UserError`."""
    with faults(path):
        if path.suffix.lower() == ".parquet":
            with parquet_file(path) as file:
                return list(map(str, file.schema_arrow.names))
        if path.suffix.lower() == ".jsonl":
            heads = islice((row for row in _json_lines(path) if not row.fault), HEAD_ROWS)
            return list(dict.fromkeys(name for row in heads for name in row.cells))
        return next(_cells(path), (0, [], ""))[1]


def rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """All rows, with the cells of the `wanted` columns; a few in memory. Raises `UserError`."""
    kind = path.suffix.lower()
    with faults(path):
        if kind == ".parquet":
            yield from _parquet(path, wanted)
        else:
            yield from _json_lines(path) if kind == ".jsonl" else _csv(path)


@contextmanager
def faults(path: Path) -> Iterator[None]:
    """Raises `UserError` for what a file cannot be read for."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"--data: {path}: cannot be read: {getattr(err, 'strerror', None) or err}") from None


@contextmanager
def parquet_file(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` that reads page by page. Raises `UserError`."""
    parquet = required("pyarrow.parquet", "tables", str(path))
    arrow = required("pyarrow", "tables", str(path))
    try:
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except (arrow.ArrowException, OSError) as err:
        fault = " ".join(str(err).split())[:300]
        raise UserError(f"--data: {path}: not a Parquet file that can be read: {fault}") from None


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        while line := file.readline(MAX_LINE):
            yield line


def _cells(path: Path) -> Iterator[tuple[int, list[str], str]]:
    """(number, cells, fault) of each line of a CSV or TSV, the header as number -1."""
    reader = csv.reader(_lines(path), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    number = -1
    while True:
        try:
            cells, fault = next(reader), ""
        except StopIteration:
            return
        except csv.Error as err:
            cells, fault = [], f"line {reader.line_num}: no CSV: {err}"
        if cells or fault:
            yield number, cells, fault
            number += 1


def _csv(path: Path) -> Iterator[Row]:
    names: list[str] | None = None
    for number, cells, fault in _cells(path):
        if names is None:
            names = cells
            continue
        if not fault and len(cells) != len(names):
            fault = f"found {len(cells)} cells, the header has {len(names)}; quote cells that hold commas"
        yield Row(number, dict(zip(names, cells)), fault, escaped=True)


def _json_lines(path: Path) -> Iterator[Row]:
    number = 0
    for line in _lines(path):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError):
            cells = None
        if isinstance(cells, dict):
            yield Row(number, cells, escaped=any("\ud800" <= letter <= "\udfff" for letter in line))
        else:
            yield Row(number, {}, "no JSON object")
        number += 1


def _parquet(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """Only the wanted columns are read; strings come as bytes, as nobody has checked that they are UTF-8."""
    with parquet_file(path) as file:
        names = list(dict.fromkeys(wanted))
        if not names:
            yield from (Row(number, {}) for number in range(file.metadata.num_rows))
            return
        number = 0
        for batch in file.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
            for cells in zip(*(unchecked(batch.column(name)).to_pylist() for name in names)):
                yield Row(number, dict(zip(names, cells)))
                number += 1


def unchecked(column: Any) -> Any:
    """An Arrow column with bytes instead of strings: Python would stop at those that are not UTF-8."""
    arrow = required("pyarrow", "tables", "a table")
    kinds = arrow.types
    if kinds.is_dictionary(column.type):
        column = column.dictionary_decode()

    def binary(kind: Any) -> Any:
        if kinds.is_string(kind) or kinds.is_large_string(kind):
            return arrow.large_binary() if kinds.is_large_string(kind) else arrow.binary()
        if kinds.is_list(kind) or kinds.is_large_list(kind):
            make = arrow.list_ if kinds.is_list(kind) else arrow.large_list
            return make(binary(kind.value_type))
        return kind

    return column.cast(binary(column.type))


def text(cell: Any) -> str | None:
    """A cell that should be a name; None if it is none."""
    cell = os.fsdecode(cell) if isinstance(cell, bytes) else cell
    return cell if isinstance(cell, str) and cell.strip() else None
