"""Captions of a folder's pictures: table cells, caption files, both; and why one has none."""

import json
import os
from pathlib import Path

import pytest

from data_tools.sources import ImageFolder, Sample, SourceOptions
from data_tools.sources.captions import MAX_BYTES, of_cells
from data_tools.sources.folder import DEFAULTS

LENIENT = SourceOptions(lenient=True)
LINES = SourceOptions(caption_lines=True)
RED = "красный".encode("cp1251")  # no UTF-8: its first byte is 0xea


def the_sample(root: Path, options: SourceOptions = DEFAULTS) -> Sample:
    (sample,) = ImageFolder.open(str(root), options)
    return sample


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(b"a")
    return tmp_path


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "a.TXT"])
def test_a_caption_file_is_one_caption_or_one_a_line(root: Path, name: str) -> None:
    (root / name).write_bytes(b"\xef\xbb\xbf  a red apple,\r\non a table \r\n\r\n")
    assert the_sample(root).captions == ("a red apple,\r\non a table",)
    assert the_sample(root, LINES).captions == ("a red apple,", "on a table")


def test_the_captions_of_metadata_come_before_those_of_caption_files(root: Path) -> None:
    row = {"file_name": "a.png", "alt": ["2", "3"], "text": "1"}
    (root / "metadata.jsonl").write_text(json.dumps(row))
    (root / "a.caption").write_text("5")
    (root / "a.txt").write_text("4")
    (root / "b.txt").write_text("of no picture")
    assert the_sample(root, SourceOptions(("text", "alt"))).captions == ("1", "2", "3", "4", "5")


def test_a_picture_that_a_row_above_names_has_its_caption_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.b.png").write_bytes(b"a")
    (tmp_path / "sub/a.b.txt").write_text("file")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "sub/a.b.png", "text": "row"}))
    assert the_sample(tmp_path).captions == ("row", "file")


@pytest.mark.parametrize("text", [b"", b" \n\t\n"])
def test_an_empty_caption_file_is_an_empty_caption(root: Path, text: bytes) -> None:
    (root / "a.txt").write_bytes(text)
    for options in (DEFAULTS, LINES):
        sample = the_sample(root, options)
        assert (sample.captions, sample.caption_problem) == ((), "caption is empty")


def test_a_caption_file_that_is_not_utf8_is_a_reason_or_decoded_leniently(root: Path) -> None:
    (root / "a.txt").write_bytes(b"ok " + RED)
    sample = the_sample(root)
    assert sample.captions == ()
    assert sample.caption_problem == "caption is not UTF-8 (byte 0xea at 3); --lenient decodes it"
    assert the_sample(root, LENIENT).captions == ("ok " + "\ufffd" * len(RED),)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_metadata_cell_that_is_not_utf8_is_a_reason_or_decoded_leniently(root: Path, name: str) -> None:
    rows = {
        "metadata.jsonl": b'{"file_name": "a.png", "text": "ok %s"}\n' % RED,
        "metadata.csv": b"file_name,text\na.png,ok %s\n" % RED,
    }
    (root / name).write_bytes(rows[name])
    sample = the_sample(root)
    assert sample.captions == ()
    assert sample.caption_problem == "caption is not UTF-8 (byte 0xea at 3); --lenient decodes it"
    assert the_sample(root, LENIENT).captions == ("ok " + "\ufffd" * len(RED),)


def test_half_of_a_surrogate_pair_is_told_from_a_byte_that_is_not_utf8(root: Path) -> None:
    """The second half of a rat's code looks like an escaped byte once JSON has been read."""
    (root / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "\\udc80 rat"}\n')
    assert the_sample(root).captions == ("? rat",)


@pytest.mark.parametrize(
    ("cells", "captions", "problem"),
    [
        ([None], (), ""),
        ([[]], (), ""),
        ([""], (), "caption is empty"),
        (["", 3], (), "caption is of type int, wanted text"),
        (["", b"\xff"], (), "caption is not UTF-8 (byte 0xff at 0); --lenient decodes it"),
        ([["", "good"], b"\xff"], ("good",), ""),
        (["same", "same"], ("same", "same"), ""),
    ],
)
def test_cells_give_their_captions_or_the_fault_that_says_most(
    cells: list[object], captions: tuple[str, ...], problem: str
) -> None:
    assert of_cells(cells, lenient=False) == (captions, problem)


def test_a_good_caption_beside_a_bad_one_is_enough(root: Path) -> None:
    (root / "metadata.jsonl").write_text('{"file_name": "a.png", "text": " "}')
    assert the_sample(root).caption_problem == "caption is empty"
    (root / "a.txt").write_text("good")
    assert (the_sample(root).captions, the_sample(root).caption_problem) == (("good",), "")


def test_what_is_no_caption_file_is_not_read(root: Path) -> None:
    os.mkfifo(root / "a.txt")
    assert the_sample(root).caption_problem == "a.txt: unreadable file: not a regular file"
    (root / "a.txt").unlink()
    (root / "a.txt").write_bytes(b"x" * (MAX_BYTES + 1))
    assert (
        the_sample(root).caption_problem == f"a.txt: {MAX_BYTES + 1} bytes are over the limit of {MAX_BYTES}"
    )
