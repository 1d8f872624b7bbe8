"""Parquet files that hold the pictures themselves: one file, or all of a folder and its subfolders.

Keys are the cells of the first of the columns `__key__`, `key`, `id`, `image_id`, `uid` that holds texts or
whole numbers of which no two are the same; rows without one, or all if there is none, are
`row-00000012`, in a folder behind the file's name. A file or a row group that cannot be read is rejected,
the others are read on. In memory are the rows at hand, and 256 MB of pictures, as files are read forwards.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from data_tools.errors import UserError
from data_tools.sources import captions, contents, metadata, parquet
from data_tools.sources.cursor import Cursor, Picture, picture_of
from data_tools.sources.inside import LEAVES, is_inside, read_inside
from data_tools.sources.rows import KEY_COLUMNS, Columns, Row, chosen, differ, key_of, parquet_rows
from data_tools.sources.sample import Sample, SourceOptions, Unusable, shown
from data_tools.sources.several import NothingUsable

MAX_BYTES = 1 << 31
"Of a picture file; 178 million pixels are 0.7 GB uncompressed."
READ_ROWS = 16
"Of the picture column, decoded at once."


@dataclass(frozen=True)
class File:
    """A Parquet file of a source."""

    path: Path
    name: str
    "Relative to the source."
    rows: int = 0
    num_bytes: int = -1
    mtime_ns: int = 0
    problem: str = ""
    "Why it cannot be read."
    unlisted: bool = False
    "It may be there another time."


@dataclass(frozen=True)
class ParquetPictures:
    """Rows of Parquet files with a column of bytes, or of Hugging Face's {bytes, path}."""

    data: str
    root: Path
    "The folder that paths are relative to."
    options: SourceOptions
    columns: Columns
    files: tuple[File, ...]

    @classmethod
    def open(cls, data: str, options: SourceOptions) -> "ParquetPictures":
        """Raises `UserError` for wrong columns, and if there is no file, or none has rows."""
        path, columns, first, schemas = Path(data), None, "", []
        root = path if path.is_dir() else path.parent
        found = contents.below(path, ".parquet") if path.is_dir() else [path]
        files = []
        for each in found:
            if path.is_dir() and each.name in metadata.NAMES:
                continue
            file, schema = _looked_at(each, root, inside=path.is_dir())
            files.append(file)
            if schema is None:
                continue
            columns = columns or chosen(str(each), list(schema.names), options)
            first = first or file.name
            schemas.append(_check(schema, each, columns, first))
        if not files:
            raise UserError(f"--data: {data}: found no Parquet file")
        if columns is not None and not any(file.rows for file in files):
            raise UserError(f"--data: {data}: no rows in it")
        source = cls(data, root, options, columns or Columns("", (), None), tuple(files))
        return replace(source, columns=replace(source.columns, key=source._key(schemas)))

    @property
    def count(self) -> int:
        """A file that cannot be read counts as one."""
        return sum(1 if file.problem else file.rows for file in self.files)

    def __iter__(self) -> Iterator[Sample]:
        """Raises `NothingUsable` if no file can be read."""
        yield from chain.from_iterable(map(self._listed, self.files))
        if all(file.problem for file in self.files):
            first = self.files[0]
            name = "" if self.data.endswith(first.name) else f"{first.name}: "
            raise NothingUsable(f"--data: {self.data}: {name}{first.problem}")

    def read(self, sample: Sample) -> bytes:
        """The picture; reading in the order of rows is fast. Raises `Unusable`."""
        if sample.problem:
            raise Unusable(sample.problem)
        name, _, row = sample.place.rpartition(":")
        first, count = self._first_rows.get(name, (0, 0))
        if not row.isdecimal() or int(row) >= count:
            raise Unusable(f"no such row: {sample.place}")
        try:
            data = self._cursor.get(first + int(row))
        except (ValueError, IndexError) as err:  # ValueError: a path that is not UTF-8
            raise Unusable(" ".join(str(err).split())) from None
        if isinstance(data, Unusable):
            raise Unusable(str(data))
        return data

    @cached_property
    def _cursor(self) -> Cursor:
        return Cursor(self._pictures)

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self.root)

    @cached_property
    def _first_rows(self) -> dict[str, tuple[int, int]]:
        """Of each file, how many rows come before it and how many it has."""
        first, found = 0, {}
        for file in self.files:
            found[file.name] = first, file.rows
            first += file.rows
        return found

    def _key(self, schemas: Sequence[Any]) -> str | None:
        """The first key column, of all the files, whose values differ."""
        for name in KEY_COLUMNS if schemas else ():
            if all(name in each.names and parquet.holds_keys(each.field(name).type) for each in schemas):
                rows = chain.from_iterable(self._rows(file, [name]) for file in self.files)
                if differ(row.cells.get(name) for row in rows):
                    return name
        return None

    def _rows(self, file: File, names: Sequence[str]) -> Iterator[Row]:
        """All the rows that a file is known to have."""
        number = 0
        try:
            for row in parquet_rows(file.path, names) if file.rows else ():
                if row.number < file.rows:
                    number = row.number + 1
                    yield row
            fault = "the file was changed while it was read"
        except Unusable as reason:
            fault = str(reason)
        yield from (Row(missing, {}, fault) for missing in range(number, file.rows))

    def _listed(self, file: File) -> Iterator[Sample]:
        if file.problem:
            unlisted = f"{file.name}:" if file.unlisted else ""
            yield Sample(
                file.name, (), file.name, -1, 0, "", 0, file.problem, file.problem, unlisted=unlisted
            )
            return
        prefix = f"{file.name}:" if Path(self.data).is_dir() else ""
        for row in self._rows(file, [*self.columns.captions, *filter(None, [self.columns.key])]):
            key = key_of(row.cells.get(self.columns.key or ""))
            cells = [row.cells.get(name) for name in self.columns.captions]
            texts, problem = captions.of_cells(cells, lenient=self.options.lenient)
            yield Sample(
                key=shown(key) if key else f"{prefix}row-{row.number:08d}",
                captions=texts,
                place=f"{file.name}:{row.number}",
                num_bytes=file.num_bytes,
                mtime_ns=file.mtime_ns,
                problem=row.fault,
                caption_problem=row.fault or problem,
            )

    def _pictures(self, row: int) -> Iterator[Picture]:
        """Pictures from a row on, by files and row groups, so that those before it are not read."""
        for file in self.files:
            if row >= file.rows:
                row -= file.rows
                continue
            left = file.rows - row
            try:
                for batch in parquet.batches(file.path, [self.columns.image], READ_ROWS, row):
                    damaged = isinstance(batch, parquet.Damage)
                    cells = [batch] * batch.rows if damaged else batch.column(0)
                    for cell in cells[:left]:
                        yield Unusable(cell.what) if damaged else self._bytes(cell.as_py())
                    left -= min(left, len(cells))
                fault = "the file was changed while it was read"
            except Unusable as reason:
                fault = str(reason)
            yield from (Unusable(fault) for _ in range(left))
            row = 0

    def _bytes(self, cell: Any) -> Picture:
        path = cell.get("path") if isinstance(cell, dict) else None
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        return picture_of(data, path, lambda path: read_inside(self._real_root, path, max_bytes=MAX_BYTES))


def _looked_at(path: Path, root: Path, *, inside: bool) -> tuple[File, Any]:
    """A file and its Arrow schema, None if it cannot be read; `inside`: nor may it lead out of `root`."""
    file = File(path, shown(path.relative_to(root).as_posix()))
    if inside and path.is_symlink() and not is_inside(path, os.path.realpath(root)):
        return replace(file, problem=LEAVES), None
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
            return replace(file, problem="unreadable file: not a regular file"), None
        path.open("rb").close()
        with parquet.opened(path) as opened:
            schema, rows = opened.schema_arrow, int(opened.metadata.num_rows)
    except Unusable as reason:
        return replace(file, problem=str(reason)), None
    except OSError as err:
        return replace(file, problem=f"unreadable file: {err.strerror or err}", unlisted=True), None
    return replace(file, rows=rows, num_bytes=status.st_size, mtime_ns=status.st_mtime_ns), schema


def _check(schema: Any, path: Path, columns: Columns, first: str) -> Any:
    """The schema. Raises `UserError` if it lacks a column, or has one of another type than is wanted."""
    for column in (columns.image, *columns.captions):
        if column not in schema.names:
            raise UserError(f"--data: {path}: has no column {column!r}, which {first} has")
    if not parquet.holds_pictures(schema.field(columns.image).type, str(path), columns.image):
        raise UserError(f"--data: {path.parent}: found Parquet files with paths; name one file of them")
    parquet.check_captions(str(path), schema, columns.captions)
    return schema
