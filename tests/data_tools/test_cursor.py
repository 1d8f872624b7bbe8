"""Rows that can only be read forwards, asked for in any order."""

from typing import Any

import pytest

from data_tools.sources.cursor import ROW_BYTES, Cursor


def test_a_cursor_keeps_what_its_limit_allows_and_starts_again_for_the_rest() -> None:
    starts = []

    def start(row: int) -> Any:
        starts.append(row)
        return iter([bytes([number]) * 100 for number in range(row, 50)])

    cursor = Cursor(start, max_bytes=5 * (100 + ROW_BYTES))
    assert [cursor.get(number)[0] for number in (0, 3, 9, 6, 5)] == [0, 3, 9, 6, 5]  # type: ignore[index]
    assert starts == [0]
    assert cursor.get(2) == bytes([2]) * 100
    assert starts == [0, 2]
    with pytest.raises(IndexError):
        cursor.get(50)
    assert cursor.get(49) == bytes([49]) * 100


def test_a_cursor_starts_anew_after_a_fault() -> None:
    faults = [OSError("gone")]

    def start(row: int) -> Any:
        for number in range(row, 10):
            if number == 4 and faults:
                raise faults.pop()
            yield bytes([number])

    cursor = Cursor(start)
    assert cursor.get(2) == b"\2"
    with pytest.raises(OSError, match="gone"):
        cursor.get(5)
    assert cursor.get(5) == b"\5"
