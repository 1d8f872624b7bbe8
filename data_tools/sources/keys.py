"""A set of names that may be larger than memory: it spills to a temporary file, which goes with it."""

import sqlite3
from collections.abc import Iterator

from data_tools.errors import UserError

CACHE_KIB = 32 << 10
"Kept in memory of each set."


class Names:
    """Names in sorted order (by code point), each with a note; a name keeps the first note it was added with.

    Raises `UserError` when the temporary folder is full.
    """

    def __init__(self) -> None:
        self._rows = sqlite3.connect(
            "", isolation_level=None, check_same_thread=False
        )  # "": a temporary file
        for line in (
            "PRAGMA journal_mode = OFF",
            f"PRAGMA cache_size = -{CACHE_KIB}",
            "CREATE TABLE names (name BLOB PRIMARY KEY, note BLOB) WITHOUT ROWID",
            "BEGIN",
        ):
            self._rows.execute(line)

    def add(self, name: str, note: str = "") -> str | None:
        """None if the name is new; else the note that it has already."""
        try:
            insert = "INSERT OR IGNORE INTO names VALUES (?, ?)"
            if self._rows.execute(insert, (_packed(name), _packed(note))).rowcount:
                return None
        except sqlite3.OperationalError as err:
            raise UserError(f"TMPDIR: {err}; set TMPDIR to a folder with more space") from None
        return self.note(name)

    def note(self, name: str) -> str | None:
        """The note of a name, or None if the name is not in the set."""
        row = self._rows.execute("SELECT note FROM names WHERE name = ?", (_packed(name),)).fetchone()
        return None if row is None else _unpacked(row[0])

    def __contains__(self, name: str) -> bool:
        return self.note(name) is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(name, note) in order; nothing may be added meanwhile."""
        for name, note in self._rows.execute("SELECT name, note FROM names ORDER BY name"):
            yield _unpacked(name), _unpacked(note)

    def pop(self) -> str | None:
        """Take the first name out; None if there is none."""
        row = self._rows.execute("SELECT name FROM names ORDER BY name LIMIT 1").fetchone()
        if row is None:
            return None
        self._rows.execute("DELETE FROM names WHERE name = ?", row)
        return _unpacked(row[0])

    def clear(self) -> None:
        self._rows.execute("DELETE FROM names")

    def close(self) -> None:
        self._rows.close()


def _packed(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # file names that are not UTF-8 come as half surrogates


def _unpacked(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")
