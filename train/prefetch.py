"""Read ahead in one thread, as far as a number of bytes goes."""

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor

Batch = dict[str, Tensor]


class Prefetch:
    """Batches made in a thread before they are asked for.

    Those that wait hold at most `limit` bytes together; a single one may be larger. Besides them there is the
    one in the making and the one that the caller works on. `wait_seconds` is how long the caller has waited.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.wait_seconds = 0.0
        self.waiting_bytes = 0
        self._changed = threading.Condition()
        self._ready: deque[Batch | None] = deque()
        self._stopped = False
        self._error: BaseException | None = None

    def iterate(self, batches: Iterable[Batch]) -> Generator[Batch, None, None]:
        """`batches`, in order. What making them raises is raised here; closing this ends the thread."""
        with self._filled_from(batches):
            while (batch := self._take()) is not None:
                yield batch

    @contextmanager
    def _filled_from(self, batches: Iterable[Batch]) -> Iterator[None]:
        self._ready.clear()
        self.waiting_bytes, self._stopped, self._error = 0, False, None
        thread = threading.Thread(target=self._fill, args=(batches,), name="prefetch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
            thread.join()

    def _fill(self, batches: Iterable[Batch]) -> None:
        try:
            for batch in batches:
                if not self._put(batch):
                    return
        except BaseException as err:  # raised again by `_take`
            self._error = err
        self._put(None)

    def _put(self, batch: Batch | None) -> bool:
        """Wait for room; False if nobody wants it any more."""
        size = num_bytes(batch) if batch is not None else 0
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or not self._ready or self.waiting_bytes + size <= self.limit
            )
            self._ready.append(batch)
            self.waiting_bytes += size
            self._changed.notify_all()
            return not self._stopped

    def _take(self) -> Batch | None:
        started = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) > 0)
            batch = self._ready.popleft()
            self.waiting_bytes -= num_bytes(batch) if batch is not None else 0
            self._changed.notify_all()
        self.wait_seconds += time.perf_counter() - started
        if batch is None and self._error is not None:
            raise self._error
        return batch


def num_bytes(batch: Batch) -> int:
    return sum(value.nbytes for value in batch.values())
