"""Folders of tars: what their names say, links that lead out, what cannot be looked into."""

import errno
import gzip
import os
from pathlib import Path

import pytest

from data_tools.sources.inside import LEAVES
from data_tools.sources.remote import File, opened, read_range
from data_tools.sources.sample import Unusable
from tests.data_tools.tars import listing, pictures, problems, readable, tar


def test_the_ending_of_a_tar_may_be_in_capitals(tmp_path: Path) -> None:
    tar(tmp_path / "0.TAR", pictures("a"))
    assert readable(tmp_path) == {"a": b"picture a"}


def test_packed_tars_among_tars_are_named(tmp_path: Path) -> None:
    plain = tar(tmp_path / "0.tar", pictures("a"))
    for name in ("1.tar.gz", "2.TGZ"):
        (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "3.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(600))
    packed = {"1.tar.gz": "gzip", "2.TGZ": "gzip", "3.tar.zst": "zstd"}
    assert problems(tmp_path) == {
        name: f"tar: no plain tar but packed with {how}; unpack it" for name, how in packed.items()
    }
    assert list(readable(tmp_path)) == ["a"]


def test_links_that_leave_the_folder_are_refused_and_those_inside_followed(tmp_path: Path) -> None:
    tar(tmp_path / "secret" / "s.tar", pictures("s"))
    root = tar(tmp_path / "data" / "0.tar", pictures("a")).parent
    tar(root / ".store" / "blob", pictures("b"))
    (root / "1.tar").symlink_to(".store/blob")
    (root / "2.tar").symlink_to("../secret/s.tar")
    (root / "more").symlink_to("../secret")
    assert problems(root) == {"2.tar": f"tar: {LEAVES}", "more": f"tar: {LEAVES}"}
    assert readable(root) == {"a": b"picture a", "b": b"picture b"}


def test_a_refused_file_is_neither_listed_nor_read(tmp_path: Path) -> None:
    file = File("0.tar", str(tar(tmp_path / "0.tar", pictures("a"))), "refused")
    with pytest.raises(Unusable, match=r"^refused$"):
        read_range(file, 0, 10)
    with pytest.raises(Unusable, match=r"^refused$"), opened(file):
        pass


def test_a_tar_that_is_named_as_the_source_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.tar").symlink_to(tar(tmp_path / "out.tar", pictures("a")))
    assert list(readable(tmp_path / "in" / "0.tar")) == ["a"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar(tmp_path / "0.tar", pictures("a"))
    tar(tmp_path / "shut" / "1.tar", pictures("b"))
    scandir = os.scandir

    def denied(path: str) -> object:  # root, as which tests may run, cannot be kept out of a folder
        if Path(path).name == "shut":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    found = listing(tmp_path)
    assert list(found) == ["a", "shut/"]
    assert found["shut/"].problem == "tar: unreadable folder: Permission denied"
    assert found["shut/"].unlisted == "shut/"


def test_what_cannot_be_looked_at_now_says_so_and_what_is_damaged_does_not(tmp_path: Path) -> None:
    for number in (0, 2, 3):
        tar(tmp_path / f"{number}.tar", pictures(str(number)))
    os.truncate(tmp_path / "3.tar", 1000)
    os.mkfifo(tmp_path / "4.tar")
    found = listing(f"{tmp_path}/{{0..4}}.tar")
    assert {key: sample.unlisted for key, sample in found.items() if sample.problem} == {
        "1.tar": "1.tar#",  # named, so it may be back
        "3.tar": "",
        "4.tar": "4.tar#",
    }
    (tmp_path / "5.tar").symlink_to("/dev/null")
    assert listing(tmp_path)["5.tar"].unlisted == ""
