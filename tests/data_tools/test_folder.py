"""The Hugging Face ImageFolder convention, and what is said when a folder does not keep it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import UserError
from data_tools.sources import ImageFolder, Sample, SourceOptions, Unusable, open_source


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))


def metadata(folder: Path, *rows: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


def listing(root: Path, *caption_columns: str) -> dict[str, tuple[str, ...]]:
    source = open_source([str(root)], SourceOptions(caption_columns))
    samples = list(source)
    assert source.count == len(samples)
    return {sample.key: sample.captions for sample in samples}


def the_sample(root: Path, key: str) -> tuple[ImageFolder, Sample]:
    source = ImageFolder.open(str(root))
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
    with pytest.raises(
        UserError,
        match=r"^--data: .*metadata\.jsonl: row 2: a\.png is listed twice, first in .*metadata\.jsonl row 1;",
    ):
        listing(tmp_path)


def test_a_picture_listed_in_two_metadata_files_is_an_error_that_names_it(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.png")
    metadata(tmp_path, {"file_name": "sub/a.png", "text": "1"})
    metadata(tmp_path / "sub", {"file_name": "a.png", "text": "2"})
    both = (
        rf"sub/metadata\.jsonl: row 1: sub/a\.png is listed twice, first in {tmp_path}/metadata\.jsonl row 1;"
    )
    with pytest.raises(UserError, match=both):
        listing(tmp_path)


@pytest.mark.parametrize("line", ["not json", '["a.png"]', '{"text": "no name"}', "{", "3", "[" * 100_000])
def test_a_row_that_cannot_be_used_is_a_sample_that_names_it(tmp_path: Path, line: str) -> None:
    said = "no file_name, wanted a string" if "text" in line else "no JSON object"
    touch(tmp_path, "a.png")
    good = '{"file_name": "a.png", "text": "x"}'
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n\n{line}\n")
    assert listing(tmp_path) == {"a.png": ("x",), "metadata.jsonl#2": ()}
    source, sample = the_sample(tmp_path, "metadata.jsonl#2")
    assert sample.problem == sample.caption_problem == said
    with pytest.raises(Unusable, match=f"^{said}$"):
        source.read(sample)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('[\n{"file_name": "a.png"},\n]\n', "row 1: no JSON object"),
        ('\n{"name": "a.png", "text": "x"}', "row 1: no file_name, wanted a string"),
        ('{"file_name": 7, "text": "x"}', "row 1: file_name is 7, wanted a string"),
        ('{"file_name": "", "text": "x"}', "row 1: file_name is '', wanted a string"),
    ],
)
def test_a_file_without_one_good_row_is_refused_with_its_first_fault(
    tmp_path: Path, lines: str, said: str
) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(lines)
    with pytest.raises(UserError, match=rf"^--data: .*metadata\.jsonl: {said}$"):
        listing(tmp_path)


def test_a_mistyped_caption_column_is_one_line_with_the_columns_there_are(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    metadata(tmp_path, {"file_name": "a.png", "caption": "x", "width": 3})
    with pytest.raises(
        UserError, match=r"^--caption-column: .* no column 'text'; it has: caption, file_name, width$"
    ):
        listing(tmp_path)


def test_columns_asked_for_have_to_be_in_some_metadata_file(tmp_path: Path) -> None:
    touch(tmp_path, "a/a.png", "b/b.png")
    metadata(tmp_path / "a", {"file_name": "a.png", "text": "x"})
    metadata(tmp_path / "b", {"file_name": "b.png", "alt": "y"})
    both = list(ImageFolder.open(str(tmp_path), SourceOptions(("text", "alt"))))
    assert [sample.captions for sample in both] == [("x",), ("y",)]
    source = ImageFolder.open(str(tmp_path / "a"), SourceOptions(("text", "atl")))
    with pytest.raises(UserError, match=r"^--caption-column: .* no column 'atl'; it has: file_name, text$"):
        _ = source.count


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "sub/more.TXT", "a.zip", ".hidden")
    with pytest.raises(
        UserError, match=r"^--data: .*: no pictures found \(found 2 \.txt, 1 \.zip; wanted \.apng \."
    ):
        listing(tmp_path)


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


@pytest.mark.parametrize("folder", ["", "\udcfe/"])
def test_a_file_name_that_is_not_utf8_is_a_sample_with_a_problem(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, "a.png")
    try:
        touch(tmp_path, f"{folder}\udcff.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    key = f"{folder}\\udcff.png".replace("\udcfe", "\\udcfe")
    assert listing(tmp_path) == {"a.png": (), key: ()}
    source, sample = the_sample(tmp_path, key)
    assert (sample.place, sample.num_bytes > 0) == (key, True)
    with pytest.raises(Unusable, match=r"^file name is not UTF-8; rename the file$"):
        source.read(sample)


def test_half_of_a_surrogate_pair_in_a_file_name_is_a_problem_of_its_sample(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    metadata(tmp_path, {"file_name": "half\ud83d.png", "text": "x"}, {"file_name": "a.png", "text": "y"})
    assert listing(tmp_path) == {"half\\ud83d.png": ("x",), "a.png": ("y",)}
    assert the_sample(tmp_path, "half\\ud83d.png")[1].problem == "file name is not UTF-8; rename the file"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--data: .*: no pictures found \(it is empty\)$"):
        listing(tmp_path)


def test_a_zero_byte_picture_is_a_sample(tmp_path: Path) -> None:
    (tmp_path / "a.JPG").touch()
    source, sample = the_sample(tmp_path, "a.JPG")
    assert (sample.num_bytes, source.read(sample)) == (0, b"")


def test_folders_come_parents_first_and_sorted_whatever_stands_in_their_names(tmp_path: Path) -> None:
    names = ["b.png", "a/b.png", "a/c/a.png", "a b/a.png", "a-/a.png", "ä/a.png"]
    touch(tmp_path, *reversed(names))
    assert list(listing(tmp_path)) == names


def test_a_folder_that_cannot_be_listed_is_a_sample_that_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "sub/b.png", "then/c.png")
    samples = iter(ImageFolder.open(str(tmp_path)))
    assert next(samples).key == "a.png"
    (tmp_path / "sub/b.png").unlink()
    (tmp_path / "sub").rmdir()  # between the listing of its parent and its own
    gone, then = samples
    assert (gone.key, gone.problem) == ("sub/", "unreadable folder: No such file or directory")
    assert gone.caption_problem == gone.problem
    assert then.key == "then/c.png"


def test_a_pipe_behind_a_picture_s_name_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    source, sample = the_sample(tmp_path, "a.png")
    with pytest.raises(Unusable, match=r"^unreadable file: not a regular file$"):
        source.read(sample)
