"""The Hugging Face ImageFolder convention, and what is said when a folder does not keep it."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import UserError
from data_tools.sources import ImageFolder, Sample, Unusable, open_source


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def metadata(folder: Path, *rows: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


def listing(root: Path, caption_column: str = "text") -> dict[str, tuple[str, ...]]:
    source = open_source(str(root), caption_column=caption_column)
    samples = list(source)
    assert source.count == len(samples)
    return {sample.key: sample.captions for sample in samples}


def the_sample(root: Path, key: str) -> tuple[ImageFolder, Sample]:
    source = ImageFolder.open(str(root), caption_column="text")
    return source, next(sample for sample in source if sample.key == key)


def test_captions_are_a_string_or_a_list_of_them(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    metadata(
        tmp_path, {"file_name": "a.png", "text": "кот"}, {"file_name": "b.png", "text": ["红苹果", "apple"]}
    )
    assert listing(tmp_path) == {"a.png": ("кот",), "b.png": ("红苹果", "apple")}


def test_empty_captions_and_other_types_are_no_captions(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png")
    metadata(
        tmp_path,
        {"file_name": "a.png", "text": ["", "  ", None, 3, "good"]},
        {"file_name": "b.png", "text": None},
        {"file_name": "c.png"},
    )
    assert listing(tmp_path) == {"a.png": ("good",), "b.png": (), "c.png": ()}


def test_another_caption_column_can_be_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    metadata(tmp_path, {"file_name": "a.png", "text": "one", "alt": "other"})
    assert listing(tmp_path, "alt") == {"a.png": ("other",)}


def test_metadata_of_a_subfolder_is_relative_to_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "sub/deep/b.png")
    metadata(tmp_path, {"file_name": "a.png", "text": "first"})
    metadata(tmp_path / "sub", {"file_name": "deep/b.png", "text": "second"})
    assert listing(tmp_path) == {"a.png": ("first",), "sub/deep/b.png": ("second",)}


def test_pictures_without_a_row_are_samples_without_captions_in_sorted_order(tmp_path: Path) -> None:
    touch(tmp_path, "z.png", "b/x.JPG", "a.webp", "notes.txt", ".hidden.png", ".cache/c.png")
    assert list(listing(tmp_path).items()) == [("a.webp", ()), ("z.png", ()), ("b/x.JPG", ())]


def test_rows_keep_the_order_of_their_file_and_stand_first(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png")
    metadata(tmp_path, {"file_name": "c.png", "text": "3"}, {"file_name": "a.png", "text": "1"})
    assert list(listing(tmp_path)) == ["c.png", "a.png", "b.png"]


def test_a_sample_knows_the_size_and_time_of_its_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    source, sample = the_sample(tmp_path, "a.png")
    status = (tmp_path / "a.png").stat()
    assert (sample.num_bytes, sample.mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert source.read(sample) == b"a.png"


def test_a_row_without_its_file_is_a_sample_that_cannot_be_read(tmp_path: Path) -> None:
    metadata(tmp_path, {"file_name": "gone.png", "text": "was here"})
    source, sample = the_sample(tmp_path, "gone.png")
    assert (sample.num_bytes, sample.captions) == (-1, ("was here",))
    with pytest.raises(Unusable, match=r"^no such file$"):
        source.read(sample)


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png"])
def test_a_path_that_leads_out_of_the_folder_is_never_read(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "secret.png", "data/sub/a.png")
    metadata(tmp_path / "data", {"file_name": name, "text": "x"}, {"file_name": "sub/a.png", "text": "y"})
    source, sample = the_sample(tmp_path / "data", name)
    with pytest.raises(Unusable, match="leads out of the folder"):
        source.read(sample)


def test_an_absolute_path_is_never_read(tmp_path: Path) -> None:
    touch(tmp_path, "secret.png", "data/a.png")
    secret = (tmp_path / "secret.png").as_posix()
    metadata(tmp_path / "data", {"file_name": secret, "text": "x"})
    source, sample = the_sample(tmp_path / "data", secret)
    with pytest.raises(Unusable, match="leads out of the folder"):
        source.read(sample)


@pytest.mark.parametrize("name", ["folder.png", "nul\0.png", "x" * 300 + ".png"])
def test_what_is_no_readable_file_is_unusable(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.png").mkdir()
    metadata(tmp_path, {"file_name": name, "text": "x"})
    source, sample = the_sample(tmp_path, name)
    with pytest.raises(Unusable, match="unreadable file"):
        source.read(sample)


@pytest.mark.parametrize("spelled", ["a.png", "./a.png"])
def test_a_picture_listed_twice_is_an_error_that_names_it(tmp_path: Path, spelled: str) -> None:
    touch(tmp_path, "a.png")
    metadata(tmp_path, {"file_name": "a.png", "text": "1"}, {"file_name": spelled, "text": "2"})
    with pytest.raises(UserError, match=r"^--data: .*metadata\.jsonl: a\.png is listed twice"):
        listing(tmp_path)


def test_a_picture_listed_in_two_metadata_files_is_an_error_that_names_it(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.png")
    metadata(tmp_path, {"file_name": "sub/a.png", "text": "1"})
    metadata(tmp_path / "sub", {"file_name": "a.png", "text": "2"})
    with pytest.raises(UserError, match=r"sub/a\.png is listed twice"):
        listing(tmp_path)


@pytest.mark.parametrize("line", ["not json", '["a.png"]', '{"text": "no name"}', "{", "3"])
def test_a_line_that_is_no_row_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    touch(tmp_path, "a.png")
    good = '{"file_name": "a.png", "text": "x"}'
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n\n{line}\n")
    with pytest.raises(UserError, match=r'metadata\.jsonl: line 3: wanted JSON with a "file_name"$'):
        listing(tmp_path)


def test_a_file_name_that_is_no_string_is_named_by_its_line(tmp_path: Path) -> None:
    metadata(tmp_path, {"file_name": 7, "text": "x"})
    with pytest.raises(UserError, match="line 1: file_name is 7, wanted a string"):
        listing(tmp_path)


def test_a_mistyped_caption_column_is_one_line_with_the_columns_there_are(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    metadata(tmp_path, {"file_name": "a.png", "caption": "x", "width": 3})
    with pytest.raises(
        UserError, match=r"^--caption-column: .* no column 'text'; it has: caption, file_name, width$"
    ):
        listing(tmp_path)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(UserError, match=r"^--data: .*: no pictures found \(looked for \.bmp"):
        listing(tmp_path)


@pytest.mark.parametrize(("name", "found"), [("gone", "nothing"), ("a.png", "a file")])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str, found: str) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(UserError, match=rf"^--data: .*: found {found}, wanted a folder of pictures$"):
        listing(tmp_path / name)


def test_a_byte_order_mark_as_windows_writes_it_is_no_fault(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    row = '{"file_name": "a.png", "text": "x"}\r\n'
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + row.encode())
    assert listing(tmp_path) == {"a.png": ("x",)}


def test_half_of_a_surrogate_pair_in_a_caption_becomes_a_question_mark(tmp_path: Path) -> None:
    """JSON can hold one, UTF-8 cannot: the cache's tables could not be written."""
    touch(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "cut \\ud83d"}\n')
    assert listing(tmp_path) == {"a.png": ("cut ?",)}


def test_a_file_name_that_is_not_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    try:
        Path(str(tmp_path), b"\xff.png".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(UserError, match=r"^--data: .*: a file name that is not UTF-8: \\udcff\.png"):
        listing(tmp_path)
