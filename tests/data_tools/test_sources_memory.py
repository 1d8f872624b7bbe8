"""Memory does not grow with the source, and the set of names that makes it so."""

import json
import os
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from data_tools.sources import open_source
from data_tools.sources.keys import Names

SAMPLES = 10_000
MAX_BYTES = 100_000
"A tenth of what the names alone would take."


def rows(root: Path, count: int = SAMPLES) -> None:
    """Metadata with captions, of pictures that are not there."""
    line = '{"file_name": "sub%d/%08d.jpg", "text": "a picture"}\n'
    (root / "metadata.jsonl").write_text("".join(line % (i % 50, i) for i in range(count)))


def pictures(root: Path, count: int = SAMPLES) -> None:
    """A flat folder of links to one file, as they are made fastest."""
    (root / "0.jpg").touch()
    for i in range(1, count):
        os.link(root / "0.jpg", root / f"{i:08d}.jpg")


@pytest.mark.parametrize("fill", [rows, pictures])
def test_what_is_held_while_a_source_is_gone_through_does_not_grow_with_it(
    tmp_path: Path, fill: Callable[[Path], None]
) -> None:
    fill(tmp_path)
    source = open_source([str(tmp_path)])
    tracemalloc.start()
    try:
        for number, _ in enumerate(source, start=1):
            if number == SAMPLES:  # the last one: the generators still hold what they hold
                held = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    ours = held.filter_traces([tracemalloc.Filter(True, "*/data_tools/sources/*")])
    assert sum(statistic.size for statistic in ours.statistics("filename")) < MAX_BYTES


def test_the_first_sample_comes_before_the_rest_is_listed(tmp_path: Path) -> None:
    rows(tmp_path, 10)
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "sub1/00000001.jpg"}) + "\n")  # twice: an error, at the end
    assert next(iter(open_source([str(tmp_path)]))).key == "sub0/00000000.jpg"


def test_names_are_sorted_by_code_point_and_keep_their_first_note() -> None:
    names = ["b", "a\U0001f400", "a\uffff", "a", "", "a\0b", "a\udcff"]
    with closing(Names()) as found:
        assert [found.add(name, f"note {i}") for i, name in enumerate(names)] == [None] * len(names)
        assert found.add("b", "another") == "note 0"
        assert ("b" in found, "c" in found) == (True, False)
        assert [name for name, _ in found] == sorted(names)
        assert dict(found)["a\udcff"] == "note 6"
        assert [found.pop() for _ in names] + [found.pop()] == [*sorted(names), None]
        found.add("x")
        found.clear()
        assert found.pop() is None
