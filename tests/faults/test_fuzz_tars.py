"""Tars with bits flipped, cut short or spliced: samples that are still whole come out, the rest is named."""

import faulthandler
import io
import random
import resource
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
MEMORY = 64 << 10
"KB that the process may grow by; what a header claims is up to gigabytes."


CAPTION = b"a caption".ljust(512, b"!")
"As long as a block, so that no zeros fill it up: they would lengthen a hole up to where a record may end."


def tar_of(count: int, format: int) -> tuple[bytes, list[int]]:
    """A tar of `count` samples, and where each of them ends."""
    buffer, ends = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for number in range(count):
            picture = file_of(Image.new("RGB", (8, 8), (number, 0, 0)))
            for name, data in ((f"{number:04}.png", picture), (f"{number:04}.txt", CAPTION)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            ends.append(buffer.tell())
    return buffer.getvalue(), ends


def holed(data: bytes, members: int, draw: random.Random) -> bytes:
    """A stretch of zeros where a disk or a download has lost what was there, or zeros from there on.

    `members`: where the last one ends. What could be the end mark of a tar is not drawn (zeros up to the end
    of a record, and then the end of the file or another tar): nothing tells the two apart.
    """
    if draw.random() < 0.3:
        return data[: draw.randrange(members)].ljust(len(data) + draw.choice([512, 1536, 70_000]), b"\0")
    start = draw.randrange(members - 1024)
    end = draw.randrange(start + 1, members - 512)
    if draw.random() < 0.7:
        start, end = start // 512 * 512, end // 1024 * 1024 - 512
    return data[:start] + bytes(max(0, end - start)) + data[max(start, end) :]


def outcome(path: Path) -> tuple[Counter[str], set[str], list[str]]:
    """What became of the samples of a tar: how many, their keys, and those whose picture can be used."""
    source, seen, keys, good = TarSource.open(str(path), SourceOptions()), Counter[str](), set[str](), []
    for sample in source:
        keys.add(sample.key)
        try:
            if sample.problem:
                raise Unusable(sample.problem)
            images.decode(source.read(sample))
            seen["decoded"] += 1
            good.append(sample.key)
        except Unusable as reason:
            seen["rejected" if str(reason).isprintable() else "unprintable"] += 1
    return seen, keys, good


def fuzz(folder: Path, count: int, seed: int) -> Counter[str]:
    """Every sample that was in a tar comes out, or the tar is named as one that is not whole."""
    tars = [tar_of(6, format) for format in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)]
    names, path, total = {f"{i:04}" for i in range(6)}, folder / "a.tar", Counter[str]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        data, ends = tars[number % 3]
        kind = draw.choice(["zeros", "others", "others"])
        spoiled = (
            holed(data, ends[-1], draw) if kind == "zeros" else mutated(data, [tar for tar, _ in tars], draw)
        )
        path.write_bytes(spoiled)
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
        try:
            seen, keys, good = outcome(path)
        except UserError as err:  # nothing in it is a sample any more
            total["refused" if str(err).isprintable() else "unprintable"] += 1
            continue
        finally:
            faulthandler.cancel_dump_traceback_later()
        lost = names - keys
        assert not lost or path.name in keys, (seed, number)
        total[f"named for {kind}"] += bool(lost)
        if data.startswith(spoiled):  # cut short: all that was whole is there
            whole = sum(end <= len(spoiled) for end in ends)
            assert good[:whole] == [f"{i:04}" for i in range(whole)]
        total += seen
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
    return total


def check(seen: Counter[str]) -> None:
    kinds = ("decoded", "rejected", "refused", "named for zeros", "named for others")
    assert min(seen[kind] for kind in kinds) > 3
    assert not seen["unprintable"]


def test_2000_mutations_of_a_tar(tmp_path: Path) -> None:
    check(fuzz(tmp_path, 2_000, 0))


@pytest.mark.faults
def test_50000_mutations_of_a_tar(tmp_path: Path) -> None:
    check(fuzz(tmp_path, 50_000, 1))
