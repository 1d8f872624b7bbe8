"""What a run leaves as it is: samples in a tar that is away for a while, files that were only touched."""

import os
from collections import Counter
from pathlib import Path

import pytest

from data_tools.sources import ImageFolder
from tests.data_tools.tars import tar
from tests.precompute.command import files, precompute
from tests.precompute.edits import FP32, copy, data, encoded
from tests.precompute.pictures import picture

__all__ = ["copy", "data", "encoded"]  # fixtures


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three of two samples each."""
    for number in range(3):
        keys = (f"{number}a", f"{number}b")
        members = [
            member
            for key, picture_number in zip(keys, (2 * number, 2 * number + 1))
            for member in ((f"{key}.png", picture(picture_number)[1]), (f"{key}.txt", key.encode()))
        ]
        tar(tmp_path / "tars" / f"{number}.tar", members)
    return tmp_path / "tars" / "{0..2}.tar"


def test_a_tar_that_is_away_for_a_run_keeps_its_samples(
    tars: Path, pocket: Path, tmp_path: Path, encoded: Counter[str]
) -> None:
    root, two = tmp_path / "cache", ("--columns", "image,text")
    precompute(tars, root, pocket, *FP32, *two)
    (tars.parent / "1.tar").rename(tmp_path / "1.tar")
    encoded.clear()
    note = "could not be looked at: 1.tar (2); samples kept as they were: 2"
    assert note in precompute(tars, root, pocket, *FP32, *two, "--dry-run").splitlines()
    printed = precompute(tars, root, pocket, *FP32, *two).splitlines()
    assert printed[0] == note
    assert printed[1] == "the source has changed: 6 kept, 1 new, 0 changed, 0 removed"
    assert printed[-1] == "7 samples found = 6 cached + 1 rejected"
    (tmp_path / "1.tar").rename(tars.parent / "1.tar")
    printed = precompute(tars, root, pocket, *FP32, *two)
    assert printed.startswith("the source has changed: 6 kept, 0 new, 0 changed, 1 removed\n")
    assert printed.endswith("6 samples found = 6 cached + 0 rejected\n")
    assert not encoded


def test_touched_files_are_read_by_one_run_and_change_no_column_and_no_plan(
    copy: Path, data: Path, pocket: Path, encoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, keys = ImageFolder.read, []

    def counting(self, sample):
        keys.append(sample.key)
        return read(self, sample)

    monkeypatch.setattr(ImageFolder, "read", counting)
    for name in ("00.jpg", "21.jpg"):
        os.utime(next(data.glob(f"{name[:2]}.*")), ns=(5, 5))
    before = files(copy)
    precompute(data, copy, pocket, *FP32, "--dry-run")
    assert len(keys) == 2
    assert files(copy) == before
    precompute(data, copy, pocket, *FP32)
    assert len(keys) == 4
    after = files(copy)
    assert {name: after[name] for name in before} == before
    assert {name.partition("/")[0] for name in after.keys() - before.keys()} == {"touched"}
    for flags in ((), ("--dry-run",)):
        precompute(data, copy, pocket, *FP32, *flags)
    assert len(keys) == 4
    assert files(copy) == after
    assert not encoded
