"""Folders of Parquet files that hold pictures: what is damaged is named, what is whole is read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.errors import UserError
from data_tools.sources import Sample, Unusable, open_source
from data_tools.sources.parquet_pictures import ParquetPictures
from data_tools.sources.sample import SourceOptions
from tests.data_tools.tabular import opened, parquet, spoil, touch

NONE = "not a Parquet file that can be read: "
GROUP = "a row group of the Parquet file cannot be read: "


def shard(folder: Path, name: str, count: int = 10, row_group: int = 5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [f"{name} {number}".encode() for number in range(count)]
    return parquet(folder, {"image": pictures, "text": [f"c{n}" for n in range(count)]}, row_group, name)


def folder(root: Path) -> ParquetPictures:
    return ParquetPictures.open(str(root), SourceOptions())


def bad(source: ParquetPictures) -> dict[str, str]:
    """Samples that cannot be read or have no caption, with the reason."""
    found = {}
    for sample in source:
        try:
            source.read(sample)
        except Unusable as reason:
            found[sample.key] = str(reason)
    return found


def test_a_file_that_cannot_be_read_is_rejected_by_name_and_the_others_are_read(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet", "sub/c.parquet"):
        shard((tmp_path / name).parent, Path(name).name)
    os.truncate(tmp_path / "a.parquet", 500)
    (tmp_path / "sub" / "d.parquet").touch()
    source = folder(tmp_path)
    samples = list(source)
    assert source.count == len(samples) == 22
    assert samples[0] == Sample(
        "a.parquet", (), "a.parquet", -1, 0, problem=samples[0].problem, caption_problem=samples[0].problem
    )
    assert [key for key, reason in bad(source).items() if reason.startswith(NONE)] == [
        "a.parquet",
        "sub/d.parquet",
    ]
    assert len(bad(source)) == 2
    assert source.read(samples[-2]) == b"c.parquet 9"
    assert samples[-2].place == "sub/c.parquet:9"


def test_without_one_file_that_can_be_read_the_listing_ends_with_the_first_reason(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=rf"^--data: {tmp_path}: a\.parquet: {NONE}"):
        list(folder(tmp_path))
    with pytest.raises(UserError, match=rf"^--data: {tmp_path}/a\.parquet: {NONE}"):
        list(open_source([str(tmp_path / "a.parquet")]))


def test_a_broken_file_beside_another_source_does_not_end_the_run(tmp_path: Path) -> None:
    shard(tmp_path, "good.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"x")
    samples = list(open_source([str(tmp_path / "bad.parquet"), str(tmp_path / "good.parquet")]))
    assert [bool(sample.problem) for sample in samples] == [True] + [False] * 10


def test_a_damaged_row_group_of_captions_rejects_its_rows_alone(tmp_path: Path) -> None:
    spoil(shard(tmp_path, "a.parquet"), 0, "text")
    source = folder(tmp_path)
    assert list(bad(source)) == [f"a.parquet:row-{number:08d}" for number in range(5)]
    assert len(set(bad(source).values())) == 1


def test_a_damaged_row_group_of_pictures_rejects_its_rows_with_one_reason_without_a_path(
    tmp_path: Path,
) -> None:
    spoil(shard(tmp_path, "a.parquet"), 1, "image")
    shard(tmp_path, "b.parquet")
    reasons = bad(folder(tmp_path))
    assert list(reasons) == [f"a.parquet:row-{number:08d}" for number in range(5, 10)]
    (reason,) = set(reasons.values())
    assert reason.startswith(GROUP)
    assert "/" not in reason


def test_links_that_leave_the_folder_are_rejected_and_those_inside_it_are_read(tmp_path: Path) -> None:
    shard(tmp_path / "out", "x.parquet")
    shard(tmp_path / "in", "a.parquet")
    (tmp_path / "in/b.parquet").symlink_to("../out/x.parquet")
    (tmp_path / "in/c.parquet").symlink_to("a.parquet")
    source = folder(tmp_path / "in")
    assert bad(source) == {"b.parquet": "symbolic link that leaves the folder"}
    assert source.count == 21


def test_a_pipe_behind_a_name_does_not_hang(tmp_path: Path) -> None:
    shard(tmp_path, "a.parquet")
    os.mkfifo(tmp_path / "b.parquet")
    assert bad(folder(tmp_path)) == {"b.parquet": "unreadable file: not a regular file"}


def test_size_and_time_of_the_file_go_with_each_row(tmp_path: Path) -> None:
    before = list(opened(shard(tmp_path, "a.parquet")))[3]
    status = (tmp_path / "a.parquet").stat()
    assert (before.num_bytes, before.mtime_ns) == (status.st_size, status.st_mtime_ns)
    shard(tmp_path, "a.parquet", 11)
    os.utime(tmp_path / "a.parquet", ns=(status.st_mtime_ns, status.st_mtime_ns))
    after = list(opened(tmp_path / "a.parquet"))[3]
    assert (after.key, after.mtime_ns) == (before.key, before.mtime_ns)
    assert after.num_bytes != before.num_bytes


def test_paths_in_a_folder_are_relative_to_it(tmp_path: Path) -> None:
    touch(tmp_path, "in/p/a.png", "p/b.png")
    cells = [{"bytes": None, "path": "p/a.png"}, {"bytes": None, "path": "p/b.png"}]
    (tmp_path / "in/sub").mkdir()
    parquet(tmp_path / "in/sub", {"image": cells, "text": ["x", "y"]})
    source = folder(tmp_path / "in")
    assert source.read(next(iter(source))) == b"picture in/p/a.png"
    assert bad(source) == {"sub/t.parquet:row-00000001": "no such file"}


def test_a_file_that_becomes_shorter_while_it_is_read_rejects_what_it_lacks(tmp_path: Path) -> None:
    shard(tmp_path, "a.parquet")
    shard(tmp_path, "b.parquet")
    source = folder(tmp_path)
    shard(tmp_path, "a.parquet", 4)
    samples = list(source)
    assert source.count == len(samples) == 20
    assert {sample.problem for sample in samples[4:10]} == {"the file was changed while it was read"}
    assert source.read(samples[10]) == b"b.parquet 0"


def test_a_reader_that_is_not_read_to_its_end_says_nothing_when_python_ends(tmp_path: Path) -> None:
    """In a process of its own, which ends with the reader still open."""
    code = (
        "import sys\n"
        "from data_tools.sources import open_source\n"
        "source = open_source(sys.argv[1:])\n"
        "samples = list(source)\n"
        "keep = iter(source)\n"
        "next(keep)\n"
        "print(source.read(samples[0]).decode())\n"
    )
    command = [sys.executable, "-c", code, str(shard(tmp_path, "a.parquet"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("a.parquet 0\n", "")
