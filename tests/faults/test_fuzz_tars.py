"""Tars with bits flipped, cut short or spliced: samples that are still whole come out, the rest is named."""

import faulthandler
import io
import random
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from data_tools import images
from data_tools.errors import UserError
from data_tools.sources import SourceOptions, Unusable
from data_tools.sources.tars import TarSource
from tests.data_tools.picture_files import file_of
from tests.faults.test_fuzz_pictures import mutated

SECONDS = 20.0
"A hang is ended after so long, with a traceback."


def tar_of(count: int, format: int) -> tuple[bytes, list[int]]:
    """A tar of `count` samples, and where each of them ends."""
    buffer, ends = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for number in range(count):
            picture = file_of(Image.new("RGB", (8, 8), (number, 0, 0)))
            for name, data in ((f"{number:04}.png", picture), (f"{number:04}.txt", b"a caption")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            ends.append(buffer.tell())
    return buffer.getvalue(), ends


def outcome(path: Path) -> tuple[Counter[str], list[str]]:
    """What became of the samples of a tar, and the keys of those whose picture can be used."""
    source, seen, good = TarSource.open(str(path), SourceOptions()), Counter[str](), []
    for sample in source:
        seen["listed"] += 1
        try:
            if sample.problem:
                raise Unusable(sample.problem)
            images.decode(source.read(sample))
            seen["decoded"] += 1
            good.append(sample.key)
        except Unusable as reason:
            seen["rejected" if str(reason).isprintable() else "unprintable"] += 1
    return seen, good


def fuzz(folder: Path, count: int, seed: int) -> Counter[str]:
    tars = [tar_of(6, format) for format in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)]
    path, total = folder / "a.tar", Counter[str]()
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        data, ends = tars[number % 3]
        spoiled = mutated(data, [tar for tar, _ in tars], draw)
        path.write_bytes(spoiled)
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
        try:
            seen, good = outcome(path)
        except UserError as err:  # nothing in it is a sample any more
            total["refused" if str(err).isprintable() else "unprintable"] += 1
            continue
        finally:
            faulthandler.cancel_dump_traceback_later()
        assert seen["decoded"] + seen["rejected"] == seen["listed"]
        if data.startswith(spoiled):  # cut short: all that was whole is there
            whole = sum(end <= len(spoiled) for end in ends)
            assert good[:whole] == [f"{i:04}" for i in range(whole)]
        total += seen
    return total


def test_2000_mutations_of_a_tar(tmp_path: Path) -> None:
    seen = fuzz(tmp_path, 2_000, 0)
    assert min(seen["decoded"], seen["rejected"], seen["refused"]) > 3


@pytest.mark.faults
def test_50000_mutations_of_a_tar(tmp_path: Path) -> None:
    seen = fuzz(tmp_path, 50_000, 1)
    assert min(seen["decoded"], seen["rejected"], seen["refused"]) > 3
