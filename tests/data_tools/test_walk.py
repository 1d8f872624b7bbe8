"""Which files of a folder are pictures, and which of them are read."""

from pathlib import Path

import pytest
from PIL import Image, features

from data_tools import images
from data_tools.errors import UserError
from data_tools.sources import ImageFolder, Unusable
from data_tools.sources.walk import REFUSED, picture_suffixes
from tests.data_tools.picture_files import file_of


def test_the_endings_of_pictures_are_those_of_the_formats_that_are_read() -> None:
    Image.init()
    formats = {Image.EXTENSION[suffix] for suffix in picture_suffixes()}
    assert formats <= {*images.FORMATS, "MPO", "DIB"}
    assert formats >= set(images.FORMATS) - ({"AVIF"} if not features.check("avif") else set())


def test_a_folder_without_pictures_names_only_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(UserError, match=r"no pictures found .*\.png") as failure:
        ImageFolder.open(str(tmp_path))
    assert not [suffix for suffix in REFUSED - {".avif"} if f"{suffix} " in f"{failure.value} "]


@pytest.mark.parametrize("suffix", [*sorted(REFUSED - {".avif"}), ".HEIC"])
def test_a_picture_of_a_kind_that_is_not_read_is_a_sample_that_is_refused(
    tmp_path: Path, suffix: str
) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (tmp_path / "b.png").write_bytes(file_of(Image.new("RGB", (8, 8))))
    source = ImageFolder.open(str(tmp_path))
    first, second = source
    assert (first.key, second.key) == (f"a{suffix}", "b.png")
    with pytest.raises(Unusable, match="not a picture"):
        images.decode(source.read(first))
    images.decode(source.read(second))


def test_tars_beside_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(file_of(Image.new("RGB", (8, 8))))
    (tmp_path / "sub").mkdir()
    for name in ("a.tar", "sub/c.TAR", "d.tar.gz"):
        (tmp_path / name).touch()
    found = {sample.key: sample.problem for sample in ImageFolder.open(str(tmp_path))}
    assert list(found) == ["a.tar", "b.png", "d.tar.gz", "sub/c.TAR"]
    assert found["a.tar"] == found["sub/c.TAR"] == "holds samples of its own; give it as a --data of its own"
    assert found["b.png"] == ""
    assert found["d.tar.gz"].startswith("a compressed tar; unpack it")
