"""Which source a text after --data names, and one clear line for what names none."""

import os
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import UserError
from data_tools.sources import SourceOptions, contents
from data_tools.sources.dispatch import open_one
from data_tools.sources.folder import ImageFolder


def kind(data: str | Path) -> str:
    """Name of the class that is asked to open `data`."""
    return type(open_one(str(data), SourceOptions())).__name__


def opener(asked: list[tuple[str, str]], name: str) -> Any:
    return classmethod(lambda cls, data, options: asked.append((name, data)))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(class, data) of each source that was asked to open something; none is opened."""
    from data_tools.sources.hub import HubSource
    from data_tools.sources.tables import TableSource
    from data_tools.sources.tars import TarSource

    calls: list[tuple[str, str]] = []
    for source in (HubSource, TableSource, TarSource, ImageFolder):
        monkeypatch.setattr(source, "open", opener(calls, source.__name__))
    return calls


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("data", "source"),
    [
        ("hf:lambdalabs/naruto:train", "HubSource"),
        ("some/{000..123}.tar", "TarSource"),
        ("https://example.org/a/x.TAR?token=1", "TarSource"),
        ("s3://bucket/{00..41}.tar", "TarSource"),
    ],
)
def test_texts_that_need_no_look_at_the_disk(asked: list[tuple[str, str]], data: str, source: str) -> None:
    open_one(data, SourceOptions())
    assert asked == [(source, data)]


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (["a.png"], "ImageFolder"),
        (["sub/a.png"], "ImageFolder"),
        ([], "ImageFolder"),
        (["metadata.parquet", "sub/a.png"], "ImageFolder"),
        (["metadata.parquet"], "ImageFolder"),
        (["a.png", "backup.tar"], "ImageFolder"),
        (["00000.tar", "00001.tar"], "TarSource"),
        (["00000.tar", "00000.parquet", "00000_stats.json", ".hidden"], "TarSource"),
        (["data-00000.arrow", "state.json", "dataset_info.json"], "HubSource"),
        (["train/data.arrow", "dataset_dict.json"], "HubSource"),
        (["0.parquet", "1.parquet"], "HubSource"),
        (["0.arrow"], "HubSource"),
        (["0.parquet", "notes.md"], "HubSource"),
        (["README.md", ".gitattributes", "dataset_info.json", "data/train-0.parquet"], "HubSource"),
        (["00000.parquet", "00000_stats.json"], "HubSource"),
        (["sub/deep/0.arrow", "dataset_info.json"], "HubSource"),
        (["part-1/0.tar", "part-2/0.TAR", "README.md"], "TarSource"),
        (["0.tar", "data/train.parquet"], "TarSource"),
        (["dataset_info.json", "sub/a.png"], "ImageFolder"),
        (["state.json", "a.png"], "ImageFolder"),
        (["train.parquet", "0.tar", "x/y/a.jpeg"], "ImageFolder"),
        (["metadata.parquet", "metadata.csv", "notes.md"], "ImageFolder"),
        ([".hidden/a.png", "0.tar"], "TarSource"),
        (["a.heic", "0.tar"], "TarSource"),
    ],
)
def test_a_folder_is_what_its_files_show(
    tmp_path: Path, asked: list[tuple[str, str]], names: list[str], source: str
) -> None:
    open_one(str(files(tmp_path, *names)), SourceOptions())
    assert asked == [(source, str(tmp_path))]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet", "t.JSONL", "x.tar"])
def test_a_file_is_what_its_name_ends_in(tmp_path: Path, asked: list[tuple[str, str]], name: str) -> None:
    path = str(files(tmp_path, name) / name)
    open_one(path, SourceOptions())
    assert asked == [("TarSource" if name == "x.tar" else "TableSource", path)]


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    for name in ("x.tar", "x.csv", "hf-{1,2}"):
        assert kind(files(tmp_path / name, "a.png")) == "ImageFolder"


@pytest.mark.parametrize("name", ["x.tar.gz", "x.TGZ", "x.tar.zst"])
def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"^--data: .*{name}: found a compressed tar; unpack it"):
        kind(files(tmp_path, name) / name)


def test_nothing_there_names_the_nearest_folder_that_is(tmp_path: Path) -> None:
    nearest = rf"^--data: .*/no/such/data: found nothing there \({tmp_path} is there\), wanted a folder, "
    with pytest.raises(UserError, match=nearest):
        kind(tmp_path / "no/such/data")
    with pytest.raises(UserError, match=r"t\.csv: found nothing there"):
        kind(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("name", "said"), [("x.zip", r"an unknown kind \(\.zip\)"), ("x", r"\(its name has no ending\)")]
)
def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"^--data: .*{name}: found a file of .*{said}, wanted a folder, "):
        kind(files(tmp_path, name) / name)


def test_a_url_that_is_no_tar_is_refused() -> None:
    with pytest.raises(UserError, match=r"^--data: s3://bucket/pictures: found a URL .* ends in \.tar$"):
        kind("s3://bucket/pictures")


def test_links_to_folders_are_not_followed(tmp_path: Path, asked: list[tuple[str, str]]) -> None:
    data = files(tmp_path / "data", "0.tar")
    files(tmp_path / "other", "a.png")
    (data / "other.png").symlink_to(tmp_path / "other")
    (data / "up").symlink_to(".")
    open_one(str(data), SourceOptions())
    assert asked == [("TarSource", str(data))]


def test_the_look_ends_at_the_first_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    scan = os.scandir

    def counted(path: str) -> Any:
        looked.append(os.fspath(path))
        return scan(path)

    files(tmp_path, "a.png", *(f"{number}/x.txt" for number in range(20)))
    monkeypatch.setattr("data_tools.sources.contents.os.scandir", counted)
    assert contents.look(tmp_path).pictures
    assert looked == [str(tmp_path)] * 2


def test_a_folder_of_nothing_that_is_read_says_what_was_seen(tmp_path: Path) -> None:
    files(tmp_path, "a.tar.gz", "b.txt", "sub/c.txt", "sub/Makefile", ".hidden.png")
    seen = r"\(found 2 \.txt, 1 \.tar\.gz, 1 no ending; wanted \.apng .*, tars or Parquet files\)$"
    with pytest.raises(UserError, match=f"no pictures found {seen}"):
        kind(tmp_path)
