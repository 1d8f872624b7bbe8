"""Rows of a table file (CSV, TSV, JSON lines, Parquet), one after the other, and which columns are used."""

import codecs
import csv
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.errors import UserError
from data_tools.sources import parquet
from data_tools.sources.keys import Names
from data_tools.sources.sample import USUAL_CAPTIONS, SourceOptions, Unusable

IMAGE_COLUMNS = ("image", "image_path", "file_name", "path", "filename", "jpg", "image_bytes", "bytes")
"Tried in this order if the user names none."
KEY_COLUMNS = ("__key__", "key", "id", "image_id", "uid")
"The first whose values differ names rows whose pictures are bytes."
MAX_LINE = 1 << 24
"Characters of a line or a cell; the rest of a longer line counts as the next."
MAX_NAMED = 40
"Columns in a message; further ones are passed over."
BATCH_ROWS = 1024
"Of a Parquet file, read at once; of its caption columns alone."
HEAD_ROWS = 100
"Of JSON lines, whose columns may differ from row to row; more are read until those wanted have come."


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
    The key column is the first there is; whether its values differ is not looked at.
    """
    has = f"it has: {named(found)}"
    usual = image or next((name for name in IMAGE_COLUMNS if name in found), None)
    image = options.image_column or usual
    if image is None:
        raise UserError(f"--image-column: {what} has none of the columns {', '.join(IMAGE_COLUMNS)}; {has}")
    if image not in found:
        raise UserError(f"--image-column: {what} has no column {image!r}; {has}")
    captions = options.caption_columns or USUAL_CAPTIONS
    if not options.caption_columns and set(found) <= {image, *KEY_COLUMNS}:
        captions = ()
    if missing := [name for name in captions if name not in found]:
        raise UserError(f"--caption-column: {what} has no column {', '.join(map(repr, missing))}; {has}")
    key = next((name for name in KEY_COLUMNS if name in found), None)
    for name in (image, *captions, *([key] if key else [])):
        if found.count(name) > 1:
            raise UserError(f"--data: {what} has two columns {name!r}; rename one")
    return Columns(image, captions, key)


def named(names: Sequence[str]) -> str:
    """The names of columns for a message of one line."""
    short = [
        name if name.isprintable() else ascii(name) for name in (name[:80] for name in names[:MAX_NAMED])
    ]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return (", ".join(short) or "none") + more


def differ(cells: Iterable[object]) -> bool:
    """True if some of the cells are keys, and no two of them the same. Memory does not grow with them."""
    with closing(Names()) as seen:
        keys = (key for key in map(key_of, cells) if key is not None)
        return all(seen.add(key) is None for key in keys) and next(iter(seen), None) is not None


def header(path: Path, options: SourceOptions | None = None) -> list[str]:
    """The names of the columns; of JSON lines those that `options` mean, and those of the first rows.

    Raises `UserError`.
    """
    with faults(path):
        if path.suffix.lower() == ".parquet":
            with parquet.opened(path) as file:
                return list(map(str, file.schema_arrow.names))
        with path.open("rb") as file:
            if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise UserError(f"--data: {path}: is UTF-16; save it as UTF-8")
        if path.suffix.lower() == ".jsonl":
            return _json_names(path, options)
        _, names, fault = next(_cells(path), (0, [], ""))
        if fault:
            raise UserError(f"--data: {path}: {fault}")
        if any("\0" in name for name in names):
            raise UserError(
                f"--data: {path}: has zero bytes in its first row, as UTF-16 has; save it as UTF-8"
            )
        return names


def rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """All rows, with the cells of the `wanted` columns; a few in memory. Raises `UserError`."""
    kind = path.suffix.lower()
    with faults(path):
        if kind == ".parquet":
            yield from parquet_rows(path, wanted)
        else:
            yield from _json_lines(path) if kind == ".jsonl" else _csv(path)


@contextmanager
def faults(path: Path) -> Iterator[None]:
    """Raises `UserError` for what a file cannot be read for."""
    try:
        yield
    except Unusable as reason:
        raise UserError(f"--data: {path}: {reason}") from None
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"--data: {path}: cannot be read: {getattr(err, 'strerror', None) or err}") from None


def parquet_rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """Only the wanted columns are read; strings come as bytes, as nobody has checked that they are UTF-8.

    Raises `Unusable` for a file that is none.
    """
    names, number = list(dict.fromkeys(wanted)), 0
    if not names:
        with parquet.opened(path) as file:
            count = file.metadata.num_rows
        yield from (Row(number, {}) for number in range(count))
        return
    for batch in parquet.batches(path, names, BATCH_ROWS):
        if isinstance(batch, parquet.Damage):
            yield from (Row(number + at, {}, batch.what) for at in range(batch.rows))
            number += batch.rows
            continue
        for cells in zip(*(parquet.unchecked(batch.column(name)).to_pylist() for name in names)):
            yield Row(number, dict(zip(names, cells)))
            number += 1


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        while line := file.readline(MAX_LINE):
            yield line


def _cells(path: Path) -> Iterator[tuple[int, list[str], str]]:
    """(number, cells, fault) of each row of a CSV or TSV, the header as number -1.

    Where a quote is not closed as it should be, the lines behind the row's first are read anew as rows.
    """
    csv.field_size_limit(MAX_LINE)
    lines, again, taken = _lines(path), deque[str](), list[str]()

    def feed() -> Iterator[str]:
        while line := again.popleft() if again else next(lines, ""):
            taken.append(line)
            yield line

    def reader() -> Iterator[list[str]]:
        return csv.reader(feed(), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)

    found, number, line = reader(), -1, 1
    while True:
        taken.clear()
        try:
            cells, fault = next(found), ""
        except StopIteration:
            return
        except csv.Error as err:
            read_on = f" (read on to line {line + len(taken) - 1})" if len(taken) > 1 else ""
            cells, fault = [], f"line {line}{read_on}: no CSV: {err}; inside quotes a quote is written twice"
            again.extendleft(reversed(taken[1:]))
            del taken[1:]
            found = reader()
        line += len(taken)
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


def _json_names(path: Path, options: SourceOptions | None) -> list[str]:
    """The names of columns in JSON lines, up to the row by which all that `options` mean have come."""
    wanted = [] if options is None else [{name} for name in options.caption_columns or USUAL_CAPTIONS]
    if options is not None:
        wanted.append({options.image_column} if options.image_column else set(IMAGE_COLUMNS))
    names: dict[str, None] = {}
    for row in _json_lines(path):
        if row.number >= HEAD_ROWS and all(some & names.keys() for some in wanted):
            break
        few = len(names) < MAX_NAMED
        names.update((name, None) for name in row.cells if few or any(name in some for some in wanted))
    return list(names)


def text(cell: Any) -> str | None:
    """A cell that should be a name; None if it is none."""
    cell = os.fsdecode(cell) if isinstance(cell, bytes) else cell
    return cell if isinstance(cell, str) and cell.strip() else None


def key_of(cell: object) -> str | None:
    """A cell of a key column as a key; None if it is none."""
    whole = isinstance(cell, int) and not isinstance(cell, bool)
    return str(cell) if whole else text(cell)
