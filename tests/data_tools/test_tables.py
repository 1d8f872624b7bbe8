"""CSV, TSV, JSON lines and Parquet as sources: rows that are samples, one line for tables that are wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import UserError
from data_tools.sources.sample import Sample, Unusable
from tests.data_tools.tabular import captions, opened, parquet, problems, spoil, table, touch


def test_a_csv_with_paths_beside_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "sub/b.png")
    source = opened(table(tmp_path, '\ufeffimage,text\na.png,"one, two"\n./sub/b.png,кот\n'))
    first, second = source
    status = (tmp_path / "a.png").stat()
    assert first == Sample("a.png", ("one, two",), "a.png", status.st_size, status.st_mtime_ns)
    assert (second.key, second.captions) == ("sub/b.png", ("кот",))
    assert source.read(second) == b"picture sub/b.png"
    assert source.count is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.tsv", "file_name\ttext\na.png\tone, two\n"),
        ("t.jsonl", '\n{"file_name": "a.png", "text": "one, two"}\n'),
        ("t.CSV", 'path,text\na.png,"one, two"\n'),
    ],
)
def test_other_kinds_of_table(tmp_path: Path, name: str, text: str) -> None:
    touch(tmp_path, "a.png")
    assert captions(table(tmp_path, text, name)) == {"a.png": ("one, two",)}


def test_parquet_with_paths(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    path = parquet(tmp_path, {"file_name": ["a.png", "b.png"], "text": [["x", "y"], None]})
    assert captions(path) == {"a.png": ("x", "y"), "b.png": ()}


def test_columns_can_be_named_and_captions_be_of_several(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    path = table(tmp_path, "pic,short,long\na.png,s,l\n")
    assert captions(path, image_column="pic", caption_columns=("long", "short")) == {"a.png": ("l", "s")}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"caption_columns": ("captoin",)},
            "--caption-column: .* has no column 'captoin'; it has: image, text, n$",
        ),
        ({"image_column": "pic"}, "--image-column: .* has no column 'pic'; it has: image, text, n$"),
    ],
)
def test_a_wrong_column_is_one_line_with_those_there_are(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(UserError, match=said):
        opened(table(tmp_path, "image,text,n\na.png,x,1\n"), **options)


def test_a_table_without_a_usual_picture_column_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--image-column: .*none of the columns image, .*; it has: a, b$"):
        opened(table(tmp_path, "a,b\n1,2\n"))


def test_a_table_of_pictures_alone_has_no_captions(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    assert captions(table(tmp_path, "image\na.png\n")) == {"a.png": ()}


def test_rows_in_turn_with_one_path_are_one_sample_with_all_captions(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    path = table(tmp_path, "image,text\na.png,one\na.png,two\na.png,one\nb.png,three\n")
    assert [(sample.key, sample.captions) for sample in opened(path)] == [
        ("a.png", ("one", "two")),
        ("b.png", ("three",)),
    ]


def test_paths_that_lead_out_are_rejected_and_absolute_ones_below_the_folder_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "secret.png", "in/a.png")
    inside = tmp_path / "in"
    lines = ["../secret.png", str(inside / "a.png"), str(tmp_path / "secret.png"), f"{inside}/../secret.png"]
    source = opened(table(inside, "image\n" + "\n".join(lines) + "\n"))
    samples = list(source)
    assert source.read(samples[1]) == b"picture in/a.png"
    assert (samples[1].key, samples[1].place) == ("a.png", "a.png")
    assert samples[0].problem == "the file name leads out of the folder"
    assert [sample.key for sample in samples[2:]] == ["t.csv:row-00000002", "t.csv:row-00000003"]
    for sample in (samples[0], *samples[2:]):
        assert str(tmp_path) not in sample.place
        with pytest.raises(Unusable, match="leads out"):
            source.read(sample)


def test_a_link_that_leaves_the_folder_is_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "secret.png", "in/a.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    source = opened(table(tmp_path / "in", "image\na.png\nlink.png\n"))
    with pytest.raises(Unusable, match="symbolic link that leaves"):
        source.read(list(source)[1])


def test_wrong_paths_in_every_row_are_one_line_with_the_path_that_was_tried(tmp_path: Path) -> None:
    rows = "".join(f"pics/{number}.png,x\n" for number in range(1200))
    with pytest.raises(UserError) as failure:
        opened(table(tmp_path, "image,text\n" + rows))
    assert str(failure.value) == (
        f"--image-column: {tmp_path}/t.csv: image: none of the first 1000 pictures is there; "
        f"no such file: {tmp_path}/pics/0.png"
    )


def test_one_wrong_path_is_a_sample_that_cannot_be_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    source = opened(table(tmp_path, "image,text\na.png,x\nb.png,y\n"))
    with pytest.raises(Unusable, match="no such file"):
        source.read(list(source)[1])


def test_urls_are_one_line_that_says_to_download(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^--image-column: .*url holds URLs \(https://x/a.jpg\).*img2dataset"
    ):
        opened(table(tmp_path, "url,text\nhttps://x/a.jpg,x\n"), image_column="url")


def test_rows_that_cannot_be_read_are_rejected_with_their_line(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    found = problems(table(tmp_path, "image,text\na.png,x\n,x\nb.png,z\n"))
    assert found == {"t.csv:row-00000001": "image holds no path"}
    found = problems(table(tmp_path, '{"image": "a.png", "text": "x"}\n{\n[1]\n{"image": 7}\n', "t.jsonl"))
    assert found == {
        "t.jsonl:row-00000001": "no JSON object",
        "t.jsonl:row-00000002": "no JSON object",
        "t.jsonl:row-00000003": "image holds no path",
    }


def test_a_row_with_a_comma_too_many_has_no_caption_and_says_why(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    first, second = opened(table(tmp_path, "image,text\na.png,one, two\nb.png,x\n"))
    assert (first.captions, second.captions) == ((), ("x",))
    assert first.caption_problem == "found 3 cells, the header has 2; quote cells that hold commas"


def test_captions_that_are_not_utf8_are_said_and_decoded_if_lenient(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    path = table(tmp_path, b"image,text\na.png,caf\xe9\n")
    (sample,) = opened(path)
    assert sample.captions == ()
    assert "not UTF-8" in sample.caption_problem
    assert captions(path, lenient=True) == {"a.png": ("caf\ufffd",)}


def test_a_file_name_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    path = table(tmp_path, b"image,text\na.png,x\ncaf\xe9.png,y\n")
    assert problems(path) == {"caf\\udce9.png": "file name is not UTF-8; rename the file"}


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("t.csv", b"", "none of the columns"),
        ("t.csv", b"image,text\n", "no rows in it"),
        ("t.csv", b"image,image,text\na,b,c\n", "two columns 'image'"),
        ("t.jsonl", b"not json\n", "none of the columns"),
        ("t.parquet", b"PAR1 no more", "not a Parquet file that can be read"),
        ("t.parquet", b"", "not a Parquet file that can be read"),
    ],
)
def test_tables_that_are_none_are_one_line(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as failure:
        list(opened(table(tmp_path, data, name)))
    assert "\n" not in str(failure.value)


def test_without_pyarrow_a_parquet_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"needs the library pyarrow.*kandinsky-cache\[tables\]"):
        opened(table(tmp_path, b"", "t.parquet"))


def test_a_quote_that_is_not_closed_costs_its_own_row_and_no_other(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}.png" for number in range(9)))
    lines = [f"{number}.png,caption {number}" for number in range(9)]
    lines[2], lines[5], lines[7] = '2.png,"caption 2', '5.png,"big" house', '7.png,"never closed'
    path = table(tmp_path, "\n".join(["image,text", *lines]) + "\n")
    assert list(captions(path)) == [
        *("0.png", "1.png", "t.csv:row-00000002", "3.png", "4.png"),
        *("t.csv:row-00000005", "6.png", "t.csv:row-00000007", "8.png"),
    ]
    twice = "; inside quotes a quote is written twice"
    assert problems(path) == {
        "t.csv:row-00000002": f"line 4 (read on to line 7): no CSV: ',' expected after '\"'{twice}",
        "t.csv:row-00000005": f"line 7: no CSV: ',' expected after '\"'{twice}",
        "t.csv:row-00000007": f"line 9 (read on to line 10): no CSV: unexpected end of data{twice}",
    }


def test_cells_of_several_lines_and_quotes_written_twice_are_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    path = table(tmp_path, 'image,text\r\na.png,"a ""big"",\r\nred house"\r\nb.png,5" wide\r\n')
    assert captions(path) == {"a.png": ('a "big",\r\nred house',), "b.png": ('5" wide',)}


def test_a_caption_may_be_long_but_not_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png", "b.png")
    path = table(tmp_path, f'image,text\na.png,"{"x" * 200_000}"\nb.png,y\n')
    assert captions(path) == {"a.png": ("x" * 200_000,), "b.png": ("y",)}
    monkeypatch.setattr("data_tools.sources.rows.MAX_LINE", 100)
    found = problems(table(tmp_path, 'image,text\na.png,"open\n' + "x\n" * 100 + "b.png,y\n"))
    first = found["t.csv:row-00000000"]
    assert first.startswith("line 2 (read on to line 50): no CSV: field larger than field limit (100)")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("t.csv", "image,text\na.png,x\n".encode("utf-16"), "is UTF-16; save it as UTF-8$"),
        ("t.jsonl", '{"image": "a.png"}\n'.encode("utf-16"), "is UTF-16; save it as UTF-8$"),
        ("t.csv", "image,text\na.png,x\n".encode("utf-16-le"), "zero bytes in its first row, as UTF-16 has"),
        ("t.csv", b'"file\nname",text\na.png,x\n', r"it has: 'file\\nname', text$"),
        ("t.csv", b'"image",text,"x', "line 1: no CSV: unexpected end of data"),
        ("t.csv", ",".join(f"c{n}" for n in range(99)).encode(), "it has: c0, .* c39 and 59 more$"),
    ],
)
def test_headers_that_are_none_are_one_line(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as failure:
        opened(table(tmp_path, data, name))
    assert str(failure.value).isprintable()


def test_a_column_that_json_lines_have_late_is_found(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    late = '{"path": "a.png"}\n' * 150 + '{"path": "b.png", "text": "x", "alt": "y"}\n'
    assert captions(table(tmp_path, late, "t.jsonl")) == {"a.png": (), "b.png": ("x",)}
    assert captions(table(tmp_path, late, "t.jsonl"), caption_columns=("alt",))["b.png"] == ("y",)
    with pytest.raises(UserError, match=r"no column 'atl'; it has: path, text, alt$"):
        opened(table(tmp_path, late, "t.jsonl"), caption_columns=("atl",))


def test_a_caption_column_that_is_named_must_be_there_though_the_table_has_pictures_alone(
    tmp_path: Path,
) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(UserError, match=r"^--caption-column: .* has no column 'text'; it has: image$"):
        opened(table(tmp_path, "image\na.png\n"), caption_columns=("text",))


def test_a_parquet_column_that_cannot_hold_captions_is_one_line_with_its_type(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(UserError, match=r"^--caption-column: .*: text is of type struct<en: string>, wanted"):
        opened(parquet(tmp_path, {"path": ["a.png"], "text": [{"en": "x"}]}))
    with pytest.raises(UserError, match=r"^--caption-column: .*: text is of type int64, wanted text"):
        opened(parquet(tmp_path, {"path": ["a.png"], "text": [3]}))
    assert captions(parquet(tmp_path, {"path": ["a.png"], "text": [None]})) == {"a.png": ()}


def test_a_damaged_row_group_of_paths_is_rejected_and_the_rows_behind_it_are_read(tmp_path: Path) -> None:
    touch(tmp_path, "0.png", "1.png")
    paths = [f"{number % 2}.png" for number in range(2400)]
    path = parquet(tmp_path, {"path": paths, "text": list(map(str, range(2400)))}, row_group=1200)
    spoil(path, 0, "path")
    samples = list(opened(path))
    assert sum(bool(sample.problem) for sample in samples) == 1200
    assert samples[1199].problem.startswith("a row group of the Parquet file cannot be read: ")
    assert samples[1200].captions == ("1200",)


def test_long_lines_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_tools.sources.rows.MAX_LINE", 100)
    touch(tmp_path, "a.png")
    path = table(tmp_path, json.dumps({"image": "a.png"}) + "\n" + '"' * 1000 + "\n", "t.jsonl")
    assert captions(path)["a.png"] == ()
    assert set(problems(path).values()) == {"no JSON object"}
