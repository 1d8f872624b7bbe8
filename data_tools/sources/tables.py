"""Tables (CSV, TSV, JSON lines, Parquet): a picture column with paths, or in Parquet bytes, and captions.

Paths are relative to the table's folder and stay in it; they are the keys. Rows that follow each other with
the same path are one sample with all their captions. Rows with bytes have the text in `__key__`, `key` or
`id` as their key, or else `row-00000012`, after the file's name in a folder of Parquet files. In memory are
the rows at hand, and 256 MB of pictures of a Parquet file, which has to be read forwards.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.errors import UserError
from data_tools.sources import captions
from data_tools.sources.cursor import Cursor, Picture, picture_of
from data_tools.sources.inside import LEADS_OUT, leads_out, read_inside
from data_tools.sources.rows import Columns, Row, chosen, faults, header, parquet_file, rows, text
from data_tools.sources.sample import Sample, SourceOptions, Unusable, shown

MAX_BYTES = 1 << 31
"Of a picture file; 178 million pixels are 0.7 GB uncompressed."
URL = ("http://", "https://")
FIRST_ROWS = 1000
"If no file of these is there, the paths are taken for wrong altogether."
READ_ROWS = 16
"Of a Parquet file's picture column, decoded at once."


@dataclass(frozen=True)
class TableSource:
    """One table file, or a folder of Parquet files with pictures in them."""

    path: Path
    options: SourceOptions
    columns: Columns
    files: tuple[tuple[Path, int], ...]
    "Parquet files with pictures in them, and their numbers of rows; empty for a table of paths."

    @classmethod
    def open(cls, data: str, options: SourceOptions) -> "TableSource":
        """Raises `UserError` for wrong columns, for URLs, and if none of the first files is there."""
        path = Path(data)
        files = sorted(path.glob("[!.]*.parquet")) if path.is_dir() else [path]
        columns = chosen(data, header(files[0]), options)
        with_bytes: tuple[tuple[Path, int], ...] = ()
        if files[0].suffix.lower() == ".parquet":
            with_bytes = tuple((file, count) for file, count in _checked(files, columns) if count is not None)
        if path.is_dir() and len(with_bytes) < len(files):
            raise UserError(f"--data: {data}: found Parquet files with paths; name one file of them")
        source = cls(path, options, columns, with_bytes)
        source._check()
        return source

    @property
    def count(self) -> int | None:
        """Known where the table holds the pictures; rows of paths may belong together."""
        return sum(count for _, count in self.files) if self.files else None

    def __iter__(self) -> Iterator[Sample]:
        """Raises `UserError` for a file that cannot be read to its end."""
        if self.files:
            return chain.from_iterable(self._listed(file) for file, _ in self.files)
        names = [self.columns.image, *self.columns.captions]
        return _joined(self._of_path(row) for row in rows(self.path, names))

    def read(self, sample: Sample) -> bytes:
        """From the folder, or from the Parquet file, where reading in the order of rows is fast."""
        if sample.problem:
            raise Unusable(sample.problem)
        if not self.files:
            return read_inside(self._root, sample.place, max_bytes=MAX_BYTES)
        name, _, row = sample.place.rpartition(":")
        first, count = self._first_rows.get(name, (0, 0))
        if not row.isdecimal() or int(row) >= count:
            raise Unusable(f"no such row: {sample.place}")
        try:
            data = self._cursor.get(first + int(row))
        except (ValueError, IndexError) as err:  # ValueError: a path that is not UTF-8
            raise Unusable(f"row {row}: {err}") from None
        if isinstance(data, Unusable):
            raise Unusable(str(data))
        return data

    @cached_property
    def _root(self) -> str:
        return os.path.realpath(self.path.parent)

    @cached_property
    def _cursor(self) -> Cursor:
        return Cursor(self._pictures)

    @cached_property
    def _first_rows(self) -> dict[str, tuple[int, int]]:
        """Of each file, how many rows come before it and how many it has."""
        first, found = 0, {}
        for file, count in self.files:
            found[file.name] = first, count
            first += count
        return found

    def _listed(self, file: Path) -> Iterator[Sample]:
        """The rows of a file with bytes."""
        with faults(file):
            mtime_ns = file.stat().st_mtime_ns
        prefix = f"{file.name}:" if self.path.is_dir() else ""
        for row in rows(file, [*self.columns.captions, *filter(None, [self.columns.key])]):
            key = text(row.cells.get(self.columns.key or ""))
            texts, problem = self._captions(row)
            name = shown(key) if key else f"{prefix}row-{row.number:08d}"
            yield Sample(name, texts, f"{file.name}:{row.number}", -1, mtime_ns, caption_problem=problem)

    def _of_path(self, row: Row) -> Sample:
        here = f"{self.path.name}:row-{row.number:08d}"
        name = text(row.cells.get(self.columns.image))
        texts, caption_problem = self._captions(row)
        if name is None:
            fault = row.fault or f"{self.columns.image} holds no path"
            return Sample(here, texts, here, -1, 0, problem=fault, caption_problem=caption_problem)
        place = self._place(name.strip())
        key, problem = shown(place), _problem(place)
        if place.startswith("/"):
            place = key = here  # a cache names no places of this machine
        size, mtime_ns = (-1, 0) if problem else self._status(place)
        return Sample(key, texts, key, size, mtime_ns, problem=problem, caption_problem=caption_problem)

    def _place(self, name: str) -> str:
        """Relative to the table's folder where it lies there."""
        path = PurePosixPath(os.path.normpath(name)) if name.startswith("/") else PurePosixPath(name)
        for folder in (self.path.parent.absolute(), self._root):
            if path.is_relative_to(folder):
                return path.relative_to(folder).as_posix()
        return name if "://" in name else path.as_posix()

    def _status(self, place: str) -> tuple[int, int]:
        try:
            status = Path(self._root, place).stat()
        except (OSError, ValueError):
            return -1, 0
        return status.st_size, status.st_mtime_ns

    def _captions(self, row: Row) -> captions.Captions:
        if row.fault:
            return (), row.fault
        cells = [row.cells.get(name) for name in self.columns.captions]
        return captions.of_cells(cells, lenient=self.options.lenient, escaped=row.escaped)

    def _pictures(self, row: int) -> Iterator[Picture]:
        """Pictures from a row on, by files and row groups, so that those before it are not read."""
        for path, count in self.files:
            if row >= count:
                row -= count
                continue
            with parquet_file(path) as file:
                for group in range(file.num_row_groups):
                    length = file.metadata.row_group(group).num_rows
                    if row >= length:
                        row -= length
                        continue
                    batches = file.iter_batches(READ_ROWS, [group], [self.columns.image], use_threads=False)
                    cells = chain.from_iterable(batch.column(0) for batch in batches)
                    for cell in islice(cells, row, None):
                        yield self._bytes(cell.as_py())
                    row = 0

    def _bytes(self, cell: Any) -> Picture:
        """Of bytes, or of Hugging Face's {bytes, path}."""
        path = cell.get("path") if isinstance(cell, dict) else None
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        return picture_of(data, path, lambda path: read_inside(self._root, path, max_bytes=MAX_BYTES))

    def _check(self) -> None:
        first = list(islice(self, FIRST_ROWS))
        if not first:
            raise UserError(f"--data: {self.path}: no rows in it")
        if self.files:
            return
        column = f"--image-column: {self.path}: {self.columns.image}"
        if url := next((s.key for s in first if s.key.startswith(URL)), ""):
            raise UserError(f"{column} holds URLs ({url}); download them first, with img2dataset for example")
        if all(sample.num_bytes < 0 for sample in first):
            tried = first[0].problem or f"no such file: {self.path.parent / first[0].place}"
            raise UserError(f"{column}: none of the first {len(first)} pictures is there; {tried}")


def _problem(place: str) -> str:
    if place.startswith(URL):
        return "a URL; img2dataset downloads it"
    if place.startswith("/"):
        return f"the path {place!r} leads out of the table's folder"
    if leads_out(place):
        return LEADS_OUT
    return "" if place.isascii() or _is_utf8(place) else "file name is not UTF-8; rename the file"


def _is_utf8(name: str) -> bool:
    return name == name.encode("utf-8", "replace").decode()


def _checked(files: list[Path], columns: Columns) -> Iterator[tuple[Path, int | None]]:
    """Each Parquet file, with its number of rows if it holds bytes. Raises `UserError`."""
    for path in files:
        with parquet_file(path) as file:
            schema, count = file.schema_arrow, int(file.metadata.num_rows)
        for column in filter(None, (columns.image, *columns.captions, columns.key)):
            if column not in schema.names:
                raise UserError(f"--data: {path}: has no column {column!r}, which {files[0].name} has")
        yield path, count if _holds_bytes(schema.field(columns.image).type, path, columns.image) else None


def _holds_bytes(kind: Any, path: Path, column: str) -> bool:
    """True for bytes, False for paths. Raises `UserError` for another type of column."""
    name = str(kind)
    if name in ("binary", "large_binary", "binary_view") or name.startswith("fixed_size_binary"):
        return True
    if name.startswith("struct<") and any(
        kind.field(index).name == "bytes" for index in range(kind.num_fields)
    ):
        return True
    if "string" in name:
        return False
    raise UserError(f"--image-column: {path}: {column} is of type {name[:80]}, wanted paths or bytes")


def _joined(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Rows that follow each other with one path as one sample with all their captions, each once."""
    last: Sample | None = None
    for sample in samples:
        if last is not None and last.key == sample.key:
            texts = tuple(dict.fromkeys(last.captions + sample.captions))
            problem = "" if texts else last.caption_problem or sample.caption_problem
            last = replace(last, captions=texts, caption_problem=problem)
            continue
        if last is not None:
            yield last
        last = sample
    if last is not None:
        yield last
