"""Metadata as CSV and Parquet: the same rows as JSON lines have, and what is said of rows that are wrong."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import UserError
from data_tools.sources import ImageFolder, Sample, SourceOptions
from data_tools.sources.folder import DEFAULTS

ROWS = [
    {"file_name": "b.png", "text": 'a "quoted", caption\nof two lines', "alt": "кот"},
    {"file_name": "sub/c.png", "text": "plain", "alt": ""},
]
BOTH = SourceOptions(("alt", "text"))


def as_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [
        ",".join(f'"{str(cell).replace(chr(34), chr(34) * 2)}"' for cell in row.values()) for row in rows
    ]
    path.write_text(
        "\ufeff" + "\r\n".join([",".join(rows[0]), *lines]) + "\r\n", encoding="utf-8", newline=""
    )


def as_parquet(path: Path, rows: list[dict[str, Any]], **types: Any) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    columns = {name: arrow.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
    pyarrow.parquet.write_table(arrow.table(columns), path)


def as_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


WRITERS = {"metadata.csv": as_csv, "metadata.jsonl": as_json_lines, "metadata.parquet": as_parquet}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.png", "sub/c.png", "sub/d.png"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def listed(root: Path, options: SourceOptions = DEFAULTS) -> dict[str, Sample]:
    return {sample.key: sample for sample in ImageFolder.open(str(root), options)}


@pytest.mark.parametrize("name", WRITERS)
def test_all_forms_of_metadata_say_the_same(root: Path, name: str) -> None:
    WRITERS[name](root / name, ROWS)
    samples = listed(root, BOTH)
    assert list(samples) == ["b.png", "sub/c.png", "a.png", "sub/d.png"]
    assert samples["b.png"].captions == ("кот", 'a "quoted", caption\nof two lines')
    assert samples["sub/c.png"].captions == ("plain",)


@pytest.mark.parametrize("name", WRITERS)
def test_a_mistyped_column_is_one_line_with_the_columns_there_are(root: Path, name: str) -> None:
    WRITERS[name](root / name, ROWS)
    has = rf"^--caption-column: .*{name} has no column 'txet'; it has: alt, file_name, text$"
    with pytest.raises(UserError, match=has):
        listed(root, SourceOptions(("txet",)))


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_without_file_names_is_one_line(root: Path, name: str) -> None:
    WRITERS[name](root / name, [{"path": "b.png", "text": "x"}])
    with pytest.raises(
        UserError,
        match=rf"^--data: .*{name}(: row 1: no file_name| has no column 'file_name'; it has: path, text)",
    ):
        listed(root)


@pytest.mark.parametrize("name", WRITERS)
def test_a_row_that_leads_out_of_the_folder_is_a_problem(root: Path, name: str) -> None:
    WRITERS[name](root / name, [{"file_name": "../x.png", "text": "x"}, {"file_name": "a.png", "text": "y"}])
    assert listed(root)["../x.png"].problem == "the file name leads out of the folder"


def test_a_picture_in_two_metadata_files_of_a_folder_names_both_rows(root: Path) -> None:
    as_csv(root / "metadata.csv", ROWS)
    as_json_lines(root / "metadata.jsonl", ROWS[1:])
    twice = r"metadata\.jsonl: row 1: sub/c\.png is listed twice, first in .*metadata\.csv row 2;"
    with pytest.raises(UserError, match=twice):
        listed(root)


def test_a_csv_row_of_another_length_is_a_reason_of_its_sample(root: Path) -> None:
    (root / "metadata.csv").write_text("file_name,text\na.png,a cat, black\n\nb.png,a dog\nsub/c.png\n")
    samples = listed(root)
    assert samples["b.png"].captions == ("a dog",)
    wrong = samples["a.png"]
    assert (wrong.captions, wrong.problem) == ((), "")
    assert wrong.caption_problem == "found 3 cells, the header has 2; quote cells that hold commas"
    assert samples["sub/c.png"].caption_problem.startswith("found 1 cells")


def test_csv_that_cannot_be_parsed_is_a_sample_with_its_line(root: Path) -> None:
    (root / "metadata.csv").write_text('file_name,text\na.png,"a cat\nb.png,good\n')
    samples = listed(root)
    assert samples["metadata.csv#1"].problem.startswith("line 2 (read on to line 3): no CSV: ")
    assert samples["b.png"].captions == ("good",)


def test_parquet_lists_are_several_captions_and_bad_bytes_a_reason(root: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    rows = [
        {"file_name": "a.png", "text": [b"one", None, b"two"]},
        {"file_name": "b.png", "text": [b"\xff"]},
        {"file_name": "sub/c.png", "text": None},
    ]
    binary = arrow.array([row["text"] for row in rows], arrow.list_(arrow.binary()))
    text = arrow.ListArray.from_arrays(
        binary.offsets, arrow.Array.from_buffers(arrow.string(), len(binary.values), binary.values.buffers())
    )
    table = arrow.table({"file_name": [row["file_name"] for row in rows], "text": text})
    arrow.parquet.write_table(table, root / "metadata.parquet")
    samples = listed(root)
    assert samples["a.png"].captions == ("one", "two")
    assert samples["b.png"].caption_problem.startswith("caption is not UTF-8 (byte 0xff at 0)")
    assert (samples["sub/c.png"].captions, samples["sub/c.png"].caption_problem) == ((), "")
    assert listed(root, SourceOptions(lenient=True))["b.png"].captions == ("\ufffd",)


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_parquet_strings_of_every_kind_are_captions(root: Path, kind: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    types = {"dictionary": arrow.dictionary(arrow.int32(), arrow.string())}
    chosen = types.get(kind) or getattr(arrow, kind)()
    as_parquet(root / "metadata.parquet", ROWS, text=chosen, file_name=chosen)
    assert listed(root)["sub/c.png"].captions == ("plain",)


@pytest.mark.parametrize("data", [b"", b"PAR1 not really", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_what_is_no_parquet_file_is_one_line(root: Path, data: bytes) -> None:
    pytest.importorskip("pyarrow")
    (root / "metadata.parquet").write_bytes(data)
    with pytest.raises(
        UserError, match=r"^--data: .*metadata\.parquet: not a Parquet file that can be read: .*$"
    ):
        listed(root)


def test_parquet_without_pyarrow_names_the_extra(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "metadata.parquet").write_bytes(b"x")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'kandinsky-cache\[tables\]'$"):
        listed(root)


def test_a_column_that_json_lines_have_late_is_found(root: Path) -> None:
    late = [{"file_name": f"{i}.png"} for i in range(150)]
    as_json_lines(root / "metadata.jsonl", [*late, {"file_name": "a.png", "text": "x"}])
    assert listed(root)["a.png"].captions == ("x",)
