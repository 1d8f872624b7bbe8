"""Parquet files, row group by row group: where one is damaged its rows are counted, and the others read on.

Also what of Arrow columns is the same in Hugging Face datasets: which may hold keys, captions or pictures.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.errors import UserError
from data_tools.sources.extras import required
from data_tools.sources.sample import Unusable


class Damage(NamedTuple):
    """Rows that cannot be read."""

    rows: int
    what: str


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` that reads page by page. Raises `Unusable` with a reason."""
    parquet, errors = required("pyarrow.parquet", "tables", str(path)), _errors()
    try:
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except errors as err:
        raise Unusable(f"not a Parquet file that can be read: {line_of(err, path)}") from None


def batches(path: Path, names: Sequence[str], size: int, first: int = 0) -> Iterator[Any]:
    """Arrow record batches of up to `size` rows of some columns from row `first` on, or `Damage`.

    All the rows that the file says it has are accounted for. Raises `Unusable` for a file that is none.
    """
    errors = _errors()
    with opened(path) as file:
        for group in range(file.num_row_groups):
            left = file.metadata.row_group(group).num_rows
            if first >= left:
                first -= left
                continue
            left, skip, first = left - first, first, 0
            what = "ends early"
            try:
                for batch in file.iter_batches(size, [group], [*names], use_threads=False):
                    batch, skip = batch.slice(skip), max(0, skip - batch.num_rows)
                    left -= batch.num_rows
                    yield batch
            except errors as err:
                what = line_of(err, path)
            if left > 0:
                yield Damage(left, f"a row group of the Parquet file cannot be read: {what}")


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


def check_captions(what: str, schema: Any, names: Sequence[str]) -> None:
    """Raises `UserError` for a column that cannot hold captions."""
    for name in names:
        kind = schema.field(name).type
        if not _holds_text(kind):
            found = " ".join(str(kind).split())[:80]
            wanted = "wanted text, or lists of it; name another column"
            raise UserError(f"--caption-column: {what}: {name} is of type {found}, {wanted}")


def holds_keys(kind: Any) -> bool:
    """True for a column of texts or of whole numbers."""
    kinds = required("pyarrow", "tables", "a table").types
    return bool(kinds.is_integer(kind) or (_holds_text(kind) and not _is_list(kind)))


def holds_pictures(kind: Any, what: str, name: str) -> bool:
    """True for bytes, False for paths. Raises `UserError` for another type of column."""
    arrow = required("pyarrow", "tables", "a table")
    kinds = arrow.types
    if kinds.is_struct(kind) and "bytes" in [field.name for field in kind]:
        return True
    inner = kind.value_type if kinds.is_dictionary(kind) else kind
    if _is_binary(inner):
        return True
    if _is_text(inner):
        return False
    found = " ".join(str(kind).split())[:80]
    raise UserError(f"--image-column: {what}: {name} is of type {found}, wanted paths or bytes")


def _holds_text(kind: Any) -> bool:
    kinds = required("pyarrow", "tables", "a table").types
    while _is_list(kind) or kinds.is_dictionary(kind):
        kind = kind.value_type
    return bool(kinds.is_null(kind) or _is_text(kind) or _is_binary(kind))


def _is_list(kind: Any) -> bool:
    kinds = required("pyarrow", "tables", "a table").types
    return bool(kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind))


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def _is_binary(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary", "binary_view") or str(kind).startswith("fixed_size_binary")


def _errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises for bad files. To be asked for early: when Python ends nothing can be imported."""
    return required("pyarrow", "tables", "a table").ArrowException, OSError


def line_of(err: Exception, path: Path) -> str:
    """What an error says, on one line and without the place of the file on this machine."""
    text = str(getattr(err, "strerror", None) or err).replace(str(path), path.name)
    return " ".join(text.split())[:300] or type(err).__name__
