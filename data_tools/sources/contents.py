"""What a folder holds, by the names below it: hidden ones are passed over, links to folders not followed."""

import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import xxhash

from data_tools.errors import UserError
from data_tools.sources import metadata
from data_tools.sources.holders import DATASETS
from data_tools.sources.remote import TARS
from data_tools.sources.walk import picture_suffixes

SAVED = ({"dataset_dict.json"}, {"state.json", "dataset_info.json"})
"Either are files that `datasets.save_to_disk` writes beside the Arrow files or above them."
MAX_NAMED = 8
"Endings in a message; further ones are passed over."


@dataclass(frozen=True)
class Contents:
    """What there is of each kind; nothing is counted behind the first picture."""

    saved: bool = False
    "By `datasets.save_to_disk`."
    pictures: bool = False
    tars: bool = False
    datasets: bool = False
    "Parquet or Arrow files."


def look(folder: Path) -> Contents:
    """Goes through the names below a folder, up to the first picture. Raises `UserError`."""
    names, tars, datasets = set(), False, False
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries if entry.name in set().union(*SAVED)}
    except OSError as err:
        raise UserError(f"--data: {folder}: cannot be listed: {err.strerror or err}") from None
    if any(marks <= names for marks in SAVED):
        return Contents(saved=True)
    for entry in _files(folder):
        suffix = PurePosixPath(entry.name).suffix.lower()
        if suffix in picture_suffixes():
            return Contents(pictures=True)
        tars |= suffix == ".tar"
        datasets |= suffix in DATASETS and entry.name not in metadata.NAMES
    return Contents(tars=tars, datasets=datasets)


def below(folder: Path, suffix: str) -> list[Path]:
    """The files of an ending in a folder and its subfolders, sorted."""
    return sorted(Path(entry.path) for entry in _files(folder) if entry.name.lower().endswith(suffix))


def endings(folder: Path) -> str:
    """How the names below a folder end, and how many each way, for a message."""
    counts: Counter[str] = Counter()
    for entry in _files(folder):
        name = entry.name.lower()
        packed = next((tar for tar in TARS if name.endswith(tar)), "")
        counts[packed or PurePosixPath(name).suffix or "no ending"] += 1
    named = [f"{count} {ending}" for ending, count in counts.most_common(MAX_NAMED)]
    more = len(counts) - len(named)
    return ", ".join(named) + (f" and {more} other endings" if more else "")


def marker(root: Path, paths: list[Path]) -> int:
    """A number made of the names, sizes and times of change of some files: 0 … 2**63 - 1."""
    digest = xxhash.xxh3_64()
    for path in paths:
        status = path.stat()
        name = os.fsencode(path.relative_to(root))
        digest.update(b"%s\0%d\0%d\0" % (name, status.st_size, status.st_mtime_ns))
    return digest.intdigest() >> 1


def _files(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """Those of a folder before those of its subfolders; what cannot be listed is passed over."""
    folders = deque([os.fspath(folder)])
    while folders:
        try:
            with os.scandir(folders.popleft()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif not (entry.is_symlink() and entry.is_dir()):
                        yield entry
        except OSError:
            continue
