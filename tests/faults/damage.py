"""What can happen to the files of a cache at rest, and what a reader and `verify --full` then say."""

import contextlib
import io
import itertools
import re
import signal
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

from data_tools.cache import check
from data_tools.cache.check import Fault
from data_tools.cache.manifest import Cache
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import open_store
from data_tools.errors import DataFault, UserError
from tests.data_tools.caches import COLUMNS

Files = dict[str, bytes]
"Name → content, of a whole cache."
Values = dict[str, np.ndarray]
PATIENCE = 20.0
"Seconds after which a read or a check counts as hanging."
BLOCK = 512
"Of a tar."


@dataclass(frozen=True)
class Damage:
    what: str
    changes: dict[str, bytes | None]
    "Name → what stands there now; None: nothing."


@dataclass(frozen=True)
class Outcome:
    values: Values | None
    "What was read; None after an error."
    error: str
    "Of the reader."
    faults: list[Fault]
    "Of `verify --full`; one of no column and no part is its refusal to look."


def flip(name: str, content: bytes, offset: int, mask: int) -> Damage:
    changed = bytearray(content)
    changed[offset] ^= mask
    return Damage(f"{name}: byte {offset} ^ {mask:#04x}", {name: bytes(changed)})


def truncations(name: str, content: bytes) -> Iterator[Damage]:
    """To nothing, to half, by one byte."""
    for size in sorted({0, len(content) // 2, len(content) - 1}):
        yield Damage(f"{name}: cut to {size} of {len(content)} bytes", {name: content[:size]})


def deletion(name: str) -> Damage:
    return Damage(f"{name}: gone", {name: None})


def swaps(files: Files) -> Iterator[Damage]:
    """Each two files of one kind (over parts, columns and attempts) or of one size, contents exchanged."""
    for first, second in itertools.combinations(sorted(files), 2):
        alike = kind(first) == kind(second) or len(files[first]) == len(files[second])
        if alike and files[first] != files[second]:
            changes: dict[str, bytes | None] = {first: files[second], second: files[first]}
            yield Damage(f"{first} ⇄ {second}", changes)


def kind(name: str) -> str:
    """The name without column, identity, part, attempt, number and field."""
    name = re.sub(r"^columns/[^/]+/[0-9a-f]{12}/", "columns/*/*/", name)
    name = re.sub(r"^columns/[^/]+/column", "columns/*/column", name)
    name = re.sub(r"(part-\d{5}|null)(-[0-9a-f]{8})?", "*", name)
    return re.sub(r"(\.zarr)/[^/]+/(c|zarr)", r"\1/*/\2", name)


def landmarks(name: str, content: bytes) -> list[int]:
    """Offsets where the format itself stands: first and last bytes, headers, padding, checksums."""
    ends = {0, 1, len(content) // 2, len(content) - 2, len(content) - 1}
    if name.endswith(".npz"):
        start = content.index(b"PK")  # a generation's hash stands before it
        with zipfile.ZipFile(io.BytesIO(content[start:])) as archive:
            heads = [start + item.header_offset for item in archive.infolist()]
        directory = content.index(b"PK\x01\x02")
        ends |= {head + at for head in heads for at in (0, 4, 8, 14, 18, 26, 30)}
        ends |= {directory + at for at in (0, 10, 16, 20, 24, 42)} | {len(content) - 22}
    if name.endswith(".tar"):
        heads = [at for at in range(0, len(content), BLOCK) if content[at + 257 : at + 262] == b"ustar"]
        ends |= {head + at for head in heads for at in (0, 8, 124, 148, 156, 257, 500)}
        ends |= {head - 1 for head in heads if head} | {head + BLOCK for head in heads}
        ends |= {head + BLOCK + at for head in heads for at in (6, 8, 20, 127, 128)}
    if "/c/0" in name:
        ends |= {len(content) - at for at in (4, 5, 12, 20, 21, 24) if at <= len(content)}
    return sorted(at for at in ends if 0 <= at < len(content))


def load(root: Path) -> Files:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def read(root: Path | str) -> Values:
    """All rows, lengths, null conditions and keys of all columns, every row checked."""
    reader = CacheReader(root, COLUMNS, paranoid=True, num_threads=1)
    try:
        found: Values = {"keys": reader.key_hashes()}
        for name in COLUMNS:
            firsts, counts = reader.rows(name)
            every = np.concatenate([np.arange(f, f + n) for f, n in zip(firsts, counts)])
            found |= {f"{name} {field}": value for field, value in reader.gather(name, every).items()}
            found[f"{name} counts"] = counts
            if reader.columns[name].has_null:
                found |= {f"{name} null {field}": value for field, value in reader.null(name).items()}
        return found
    finally:
        reader.close()


def same(first: Values, second: Values) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(
        (value.dtype, value.shape, value.tobytes())
        == (second[name].dtype, second[name].shape, second[name].tobytes())
        for name, value in first.items()
    )


def outcome(root: Path, damage: Damage, files: Files) -> Outcome:
    """Do the damage, read, verify, undo it. Raises what is neither `UserError` nor `DataFault`."""
    for name, content in damage.changes.items():
        _put(root / name, content)
    values, error = None, ""
    try:
        with _patience():
            try:
                values = read(root)
            except (UserError, DataFault) as err:
                error = str(err)
            try:
                cache = Cache.open(open_store(root))
                faults = check.verify(cache, full=True, num_threads=1).faults
            except (UserError, DataFault) as err:
                faults = [Fault("", "", str(err))]
    finally:
        for name in damage.changes:
            _put(root / name, files[name])
    return Outcome(values, error, faults)


def _put(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    def ring(_: int, __: FrameType | None) -> None:
        raise AssertionError(f"hangs for {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
