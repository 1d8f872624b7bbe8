"""Metadata files of an ImageFolder: `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, row by row.

Each row names a picture (`file_name`, relative to the metadata file) and may hold captions. A row that cannot
be used is a row with a problem; a file without a good row, or without the caption columns, is an error.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_tools.errors import UserError
from data_tools.sources import captions, rows
from data_tools.sources.sample import USUAL_CAPTIONS, SourceOptions

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
MAX_NAMED = 100
"So many columns are remembered for the message that names them: no two JSON objects need be alike."


class Row(NamedTuple):
    """A row of a metadata file."""

    number: int
    "Counted from 1, without the header and empty lines."
    file_name: str
    "Empty for a row that cannot be used."
    captions: tuple[str, ...]
    problem: str
    "Why the row cannot be used, or else why it has no captions."


@dataclass
class Columns:
    """Which of the caption columns asked for are there."""

    given: tuple[str, ...]
    "By the user; none: the usual ones are looked for."
    missing: set[str] = field(init=False)
    found: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.missing = set(self.wanted)

    @property
    def wanted(self) -> tuple[str, ...]:
        return self.given or USUAL_CAPTIONS

    def add(self, names: Iterable[str]) -> None:
        self.missing.difference_update(names)
        if len(self.found) < MAX_NAMED:
            self.found.update(names)

    def check(self, path: Path, *, every: bool) -> None:
        """Raises `UserError` if there is none (`every`: not every one) of the columns asked for."""
        if not self.missing or not (every or self.missing == set(self.wanted)):
            return
        missing = ", ".join(repr(name) for name in dict.fromkeys(self.wanted) if name in self.missing)
        if self.found:
            has = rows.named(sorted(self.found))
            raise UserError(f"--caption-column: {path} has no column {missing}; it has: {has}")
        if every and self.given:
            wanted = f"wanted one of {', '.join(NAMES)}, or no --caption-column"
            raise UserError(f"--caption-column: {path} has no column {missing}: no metadata file; {wanted}")


def read(path: Path, options: SourceOptions, columns: Columns) -> Iterator[Row]:
    """The rows of a metadata file, in its order; a few in memory. Raises `UserError`."""
    header = rows.header(path)
    if path.suffix != ".jsonl" and "file_name" not in header:
        raise UserError(f"--data: {path} has no column 'file_name'; it has: {rows.named(header)}")
    here = Columns(options.caption_columns)
    here.add(header)
    bad: Row | None = None
    good = False
    wanted = [name for name in ("file_name", *dict.fromkeys(here.wanted)) if name in header]
    for cells in rows.rows(path, wanted):
        here.add(cells.cells)
        row = _row(cells, here.wanted, options.lenient)
        good |= bool(row.file_name)
        bad = row if bad is None and not row.file_name else bad
        yield row
    if bad is not None and not good:
        raise UserError(f"--data: {path}: row {bad.number}: {bad.problem}")
    here.check(path, every=False)
    columns.add(here.found | set(here.wanted) - here.missing)


def _row(row: rows.Row, columns: tuple[str, ...], lenient: bool) -> Row:
    number, name = row.number + 1, row.cells.get("file_name")
    name = os.fsdecode(name) if isinstance(name, bytes) else name
    if not isinstance(name, str) or not name:
        found = f"file_name is {name!r}" if "file_name" in row.cells else "no file_name"
        return Row(number, "", (), row.fault or f"{found}, wanted a string")
    if row.fault:
        return Row(number, name, (), row.fault)
    cells = [row.cells.get(column) for column in columns]
    return Row(number, name, *captions.of_cells(cells, lenient=lenient, escaped=row.escaped))
