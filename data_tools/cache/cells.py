"""Rows kept in memory in runs of neighbours, for block order over an object store.

In block order a batch takes a few rows of each of many blocks, and the batches that follow take the rest: a
run of neighbouring rows is fetched by one request when its first row is asked for, and kept. Memory: at most
`MAX_BYTES`, the runs used longest ago going first. The windows of the default order hold 512 blocks, 1.2 GB
of decoder records at 768 px over all ranks; a block that is not aligned to the runs touches two.
"""

from collections import OrderedDict
from threading import Lock

from data_tools.cache.reads import Bytes

MAX_BYTES = 3 << 30

Key = tuple[str, int, int]
"Field, part, number of the run in it."


class Cells:
    """May be used from several threads."""

    def __init__(self, rows: int, max_bytes: int = MAX_BYTES) -> None:
        self.rows, self.max_bytes, self.num_bytes = rows, max_bytes, 0
        self._cells: OrderedDict[Key, list[Bytes]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Key) -> list[Bytes] | None:
        """The rows of a run, or None."""
        with self._lock:
            rows = self._cells.get(key)
            if rows is not None:
                self._cells.move_to_end(key)
            return rows

    def put(self, key: Key, rows: list[Bytes]) -> None:
        with self._lock:
            self._drop(key)
            self._cells[key] = rows
            self.num_bytes += sum(map(len, rows))
            while self.num_bytes > self.max_bytes and len(self._cells) > 1:
                self._drop(next(iter(self._cells)))

    def _drop(self, key: Key) -> None:
        self.num_bytes -= sum(map(len, self._cells.pop(key, [])))
