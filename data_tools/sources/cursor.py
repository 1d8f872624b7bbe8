"""Pictures of something that can only be read forwards, handed to many threads that ask roughly in order."""

from collections.abc import Callable, Iterator
from threading import Lock

from data_tools.sources.sample import Unusable

Picture = bytes | Unusable
"The picture of a row, or why it has none."
MAX_BYTES = 256 << 20
"Pictures that have been passed and are kept, of one cursor."
ROW_BYTES = 200
"What a row that is kept costs beside its picture."
FAR = 1000
"Rows ahead from which on a new start is made."


def picture_of(data: object, path: object, read: Callable[[str], bytes]) -> Picture:
    """The bytes of a row, or what `read` finds at its path; Hugging Face's columns have either."""
    if isinstance(data, bytes):
        return data
    if not isinstance(path, str):
        return Unusable("no bytes in this row")
    try:
        return read(path)
    except Unusable as reason:
        return reason


class Cursor:
    """Reads on to the row that is asked for, and keeps the last rows it came by for those who ask late.

    A row that is no longer kept is read again from a new start. In memory: `max_bytes` of pictures and the
    one at hand.
    """

    def __init__(self, start: Callable[[int], Iterator[Picture]], max_bytes: int = MAX_BYTES) -> None:
        """`start(row)`: the pictures from that row on, in order; for a row without one, why."""
        self._start, self._max_bytes = start, max_bytes
        self._lock = Lock()
        self._pictures: Iterator[Picture] = iter(())
        self._next = -1
        self._kept: dict[int, Picture] = {}
        self._kept_bytes = 0

    def get(self, row: int) -> Picture:
        """The picture of a row, each row as often as wanted. Raises `IndexError` behind the end."""
        with self._lock:
            if row in self._kept:
                return self._kept[row]
            if self._next < 0 or not self._next <= row < self._next + FAR:
                self._restart(row)
            while self._next <= row:
                self._step()
            return self._kept[row]

    def _restart(self, row: int) -> None:
        self._next = -1  # should the start fail, the next call starts again
        self._pictures = self._start(row)
        self._next = row

    def _step(self) -> None:
        try:
            picture = next(self._pictures)
        except StopIteration:
            self._next = -1
            raise IndexError("no such row") from None
        except Exception:
            self._next = -1
            raise
        self._forget(self._next)
        self._kept[self._next] = picture
        self._kept_bytes += _size(picture)
        self._next += 1
        while self._kept_bytes > self._max_bytes and len(self._kept) > 1:
            self._forget(next(iter(self._kept)))

    def _forget(self, row: int) -> None:
        if row in self._kept:
            self._kept_bytes -= _size(self._kept.pop(row))


def _size(picture: Picture) -> int:
    return ROW_BYTES + (len(picture) if isinstance(picture, bytes) else 0)
