"""Tables (CSV, TSV, JSON lines, Parquet) of picture paths and captions.

Paths are relative to the table's folder and stay in it; they are the keys. Rows that follow each other with
the same path are one sample with all their captions. In memory are the rows at hand. Parquet that holds the
pictures themselves is `data_tools.sources.parquet_pictures`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath

from data_tools.errors import UserError
from data_tools.sources import captions, parquet
from data_tools.sources.inside import LEADS_OUT, leads_out, read_inside, status
from data_tools.sources.parquet_pictures import MAX_BYTES, ParquetPictures
from data_tools.sources.rows import Columns, Row, chosen, header, rows, text
from data_tools.sources.sample import Sample, SourceOptions, Unusable, shown

URL = ("http://", "https://")
FIRST_ROWS = 1000
"If no file of these is there, the paths are taken for wrong altogether."


@dataclass(frozen=True)
class TableSource:
    """One table file whose picture column holds paths."""

    path: Path
    options: SourceOptions
    columns: Columns

    @classmethod
    def open(cls, data: str, options: SourceOptions) -> "TableSource | ParquetPictures":
        """Raises `UserError` for wrong columns, for URLs, and if none of the first files is there."""
        path, schema = Path(data), None
        if path.suffix.lower() == ".parquet":
            try:
                with parquet.opened(path) as file:
                    schema = file.schema_arrow
            except Unusable:
                return ParquetPictures.open(data, options)  # which has it among its files
        columns = chosen(data, header(path, options), options)
        if schema is not None:
            if parquet.holds_pictures(schema.field(columns.image).type, data, columns.image):
                return ParquetPictures.open(data, options)
            parquet.check_captions(data, schema, columns.captions)
        source = cls(path, options, columns)
        source._check()
        return source

    @property
    def count(self) -> None:
        """Not known: rows may belong together."""

    def __iter__(self) -> Iterator[Sample]:
        """Raises `UserError` for a file that cannot be read to its end."""
        names = [self.columns.image, *self.columns.captions]
        return _joined(self._of_path(row) for row in rows(self.path, names))

    def read(self, sample: Sample) -> bytes:
        """From the folder. Raises `Unusable`."""
        if sample.problem:
            raise Unusable(sample.problem)
        return read_inside(self._root, sample.place, max_bytes=MAX_BYTES)

    @cached_property
    def _root(self) -> str:
        return os.path.realpath(self.path.parent)

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
        size, mtime_ns, told = (-1, 0, True) if problem else status(Path(self._root, place))
        unlisted = "" if told else key
        return Sample(key, texts, key, size, mtime_ns, "", 0, problem, caption_problem, unlisted=unlisted)

    def _place(self, name: str) -> str:
        """Relative to the table's folder where it lies there."""
        path = PurePosixPath(os.path.normpath(name)) if name.startswith("/") else PurePosixPath(name)
        for folder in (self.path.parent.absolute(), self._root):
            if path.is_relative_to(folder):
                return path.relative_to(folder).as_posix()
        return name if "://" in name else path.as_posix()

    def _captions(self, row: Row) -> captions.Captions:
        if row.fault:
            return (), row.fault
        cells = [row.cells.get(name) for name in self.columns.captions]
        return captions.of_cells(cells, lenient=self.options.lenient, escaped=row.escaped)

    def _check(self) -> None:
        names = [self.columns.image, *self.columns.captions]
        readable = (row for row in rows(self.path, names) if row.cells)
        first = [self._of_path(row) for row in islice(readable, FIRST_ROWS)]
        if not first:
            fault = next((row.fault for row in rows(self.path, names)), "no rows in it")
            raise UserError(f"--data: {self.path}: {fault}")
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
