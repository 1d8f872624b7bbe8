"""A full disk: one line that says what and where, nothing half-committed, and the same command goes on."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.cache import check
from data_tools.cache.manifest import Cache
from data_tools.cache.store import open_store
from data_tools.errors import UserError
from precompute.cli import precompute as command
from tests.data_tools.test_console import end
from tests.faults.damage import read, same
from tests.faults.writer import FORMATS, fill
from tests.precompute.command import arguments, assert_same_records, precompute, records

SIZE, FILES = 4 << 20, 400
"Bytes and inodes of the disk."
SAMPLES = 3
PAGE = 4096


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small tmpfs of its own."""
    place = tmp_path_factory.mktemp("disk")
    options = f"size={SIZE},nr_inodes={FILES}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no program `mount`: no small disk to fill")
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is not allowed here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def empty(disk: Path) -> Iterator[Path]:
    """The same, emptied again afterwards."""
    yield disk
    subprocess.run(["find", str(disk), "-mindepth", "1", "-delete"], check=True)


def occupy(disk: Path, *, left: int) -> None:
    """All but so many bytes."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(bytes(free - left))


def occupy_files(disk: Path, *, left: int) -> None:
    """All but so many inodes."""
    (disk / "fillers").mkdir()
    for number in range(os.statvfs(disk).f_favail - left):
        (disk / "fillers" / str(number)).touch()


def make_space(disk: Path) -> None:
    for filler in (disk / "filler", *disk.glob("fillers/*")):
        filler.unlink(missing_ok=True)


def committed_is_whole(root: Path) -> bool:
    """True if anything was planned. Whatever is committed can be read, and no unfinished file is left."""
    assert not list(root.rglob(".tmp-*"))
    try:
        found = check.verify(Cache.open(open_store(root)), full=True)
    except UserError:  # not planned yet
        assert not list(root.glob("columns/*"))
        return False
    assert found.faults == []
    return True


def assert_full(root: Path, format: str) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        fill(root, format, SAMPLES)
    assert caught.value.errno == errno.ENOSPC
    where = Path(str(caught.value.filename))
    assert where.is_relative_to(root)
    assert not where.name.startswith(".tmp-"), "a file that is gone says nothing to the user"


@pytest.mark.parametrize("format", FORMATS)
def test_wherever_the_disk_is_full_the_same_writer_goes_on(empty: Path, tmp_path: Path, format: str) -> None:
    """It ends in another file each time: plan, sample table, declaration, parts, records, generations."""
    fill(tmp_path / "alone", format, SAMPLES)
    files = [path for path in (tmp_path / "alone").rglob("*") if path.is_file()]
    need = sum(-(-path.stat().st_size // PAGE) * PAGE for path in files)
    planned = set()
    for number, left in enumerate(range(0, need, need // 12)):
        root = empty / str(number)
        occupy(empty, left=left)
        assert_full(root, format)
        planned.add(committed_is_whole(root))
        make_space(empty)
        fill(root, format, SAMPLES)
        assert same(read(root), read(tmp_path / "alone"))
        subprocess.run(["rm", "-r", str(root)], check=True)
    assert planned == {True, False}


@pytest.mark.parametrize("format", FORMATS)
def test_wherever_the_files_run_out_the_same_writer_goes_on(empty: Path, tmp_path: Path, format: str) -> None:
    fill(tmp_path / "alone", format, SAMPLES)
    need = sum(1 for _ in (tmp_path / "alone").rglob("*"))
    for number, left in enumerate(range(0, need, need // 8)):
        root = empty / str(number)
        occupy_files(empty, left=left)
        assert_full(root, format)
        committed_is_whole(root)
        make_space(empty)
        fill(root, format, SAMPLES)
        assert same(read(root), read(tmp_path / "alone"))
        subprocess.run(["rm", "-r", str(root), str(empty / "fillers")], check=True)


@pytest.mark.faults
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.97])
def test_precompute_on_a_full_disk_says_so_and_goes_on(
    empty: Path,
    pictures: Path,
    pocket: Path,
    tmp_path: Path,
    format: str,
    share: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`share` of the room that it needs is there."""
    flags = ("--format", format)
    precompute(pictures, tmp_path / "alone", pocket, *flags)
    files = [path for path in (tmp_path / "alone").rglob("*") if path.is_file()]
    need = sum(-(-path.stat().st_size // PAGE) * PAGE for path in files)
    occupy(empty, left=int(need * share))
    root, line = empty / "cache", arguments(pictures, empty / "cache", pocket, *flags)
    code, out, err = end(command, line, monkeypatch, capsys)
    last = err.splitlines()[-1]
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    assert last.startswith(f"{root}")
    assert last.endswith(": no space left on device")
    assert ".tmp-" not in last
    committed_is_whole(root)
    make_space(empty)
    code, out, _ = end(command, line, monkeypatch, capsys)
    assert (code, out.splitlines()[-1]) == (0, "24 samples found = 22 cached + 2 rejected")
    assert_same_records(records(root), records(tmp_path / "alone"))
