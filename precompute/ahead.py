"""The next item of an iterator, made in a thread when it is asked for."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """A context manager; at most one item is ahead, and what fails while it is made is raised by `take`."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items, self._pool = items, ThreadPoolExecutor(1)
        self._next: Future[T | None] | None = None

    def ask(self) -> None:
        """Begin with the next item, unless that has been asked for."""
        if self._next is None:
            self._next = self._pool.submit(next, self._items, None)

    def is_ready(self) -> bool:
        self.ask()
        assert self._next is not None
        return self._next.done()

    def take(self) -> T | None:
        """The next item, waited for; None at the end."""
        self.ask()
        assert self._next is not None
        item, self._next = self._next.result(), None
        return item

    def __enter__(self) -> "Ahead[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
