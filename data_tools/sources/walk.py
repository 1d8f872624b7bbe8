"""The pictures below a folder, in an order that needs no more memory for more of them.

Folder by folder, parents first, sorted: the rows of its metadata files in their order, then its other
pictures, sorted. What could grow without bound is kept on disk (`Names`).
"""

import os
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_tools.errors import UserError
from data_tools.sources import captions, metadata
from data_tools.sources.holders import of_its_own
from data_tools.sources.inside import LEADS_OUT, LEAVES, is_folder, is_inside, leads_out
from data_tools.sources.keys import Names
from data_tools.sources.sample import SourceOptions

READ = {
    *(".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".apng", ".png", ".tif", ".tiff", ".webp"),
}
REFUSED = {
    *(".avif", ".heic", ".heif", ".j2k", ".jp2", ".jpf", ".jpx", ".jxl"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".qoi", ".tga"),
}
"Pictures too: they are listed and then rejected by name. AVIF where Pillow was built without it."
SIDECARS = frozenset(suffix for pair in captions.SUFFIXES for suffix in pair)


@cache
def picture_suffixes() -> set[str]:
    """Lower-case endings of the names of pictures that are read."""
    from PIL import features

    return READ | ({".avif"} if features.check("avif") else set())


@cache
def _listed_suffixes() -> set[str]:
    return picture_suffixes() | REFUSED


class Found(NamedTuple):
    """What the walk came upon: a picture, or something that cannot be listed."""

    place: str
    "Relative to the folder. Bytes that are not UTF-8 stand in it as `surrogateescape` leaves them."
    captions: tuple[str, ...] = ()
    caption_problem: str = ""
    problem: str = ""
    sidecars: bool = False
    "There may be a caption file beside it."


def walk(root: Path, options: SourceOptions) -> Generator[Found]:
    """Everything below `root`. Raises `UserError` for metadata files that are wrong."""
    with closing(Names()) as listed, closing(Names()) as pending, closing(Names()) as names:
        yield from _Walk(root, options, os.path.realpath(root), listed, pending, names).run()


@dataclass
class _Walk:
    root: Path
    options: SourceOptions
    real_root: str
    listed: Names
    "Pictures with a row in a metadata file; the note says where."
    pending: Names
    "Folders to come, with a zero byte for each slash: so they sort as a walk meets them."
    names: Names
    "Pictures of the folder at hand; the note is their problem."
    followed: set[str] = field(default_factory=set)
    "Hidden folders that a symbolic link led to."

    def run(self) -> Iterator[Found]:
        columns = metadata.Columns(self.options.caption_columns)
        self.pending.add("")
        while (name := self.pending.pop()) is not None:
            yield from self._folder(name.replace("\0", "/"), columns)
        columns.check(self.root, every=True)

    def _folder(self, folder: str, columns: metadata.Columns) -> Iterator[Found]:
        self.names.clear()
        tables: list[str] = []
        sidecars, fault = False, ""
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    sidecars |= PurePosixPath(entry.name).suffix in SIDECARS
                    if self._is_table(entry):
                        tables.append(entry.name)
                    else:
                        self._take(entry, _below(folder, entry.name))
        except OSError as err:
            fault = f"unreadable folder: {err.strerror or err}"
        for name in sorted(tables):
            yield from self._rows(folder, name, columns, sidecars)
        for name, problem in self.names:
            place = _below(folder, name)
            if place not in self.listed:
                yield Found(place, (), problem, problem, sidecars and not problem)
        if fault:
            yield Found(f"{folder}/", problem=fault, caption_problem=fault)

    def _is_table(self, entry: os.DirEntry[str]) -> bool:
        """True for a metadata file. Raises `UserError` for one that must not be read."""
        if entry.name not in metadata.NAMES or is_folder(entry):
            return False
        if entry.is_symlink() and not is_inside(entry.path, self.real_root):
            raise UserError(f"--data: {entry.path}: {LEAVES}; put the file itself there")
        if not entry.is_file():
            raise UserError(f"--data: {entry.path}: found something else than a file; take it away")
        return True

    def _take(self, entry: os.DirEntry[str], place: str) -> None:
        """Put an entry of a folder where it belongs; hidden ones are passed over."""
        if entry.name.startswith("."):
            return
        is_link = entry.is_symlink()
        subfolder = is_folder(entry) if is_link else entry.is_dir()
        picture = not subfolder and PurePosixPath(entry.name).suffix.lower() in _listed_suffixes()
        if is_link and (subfolder or picture) and not is_inside(entry.path, self.real_root):
            self.names.add(entry.name, LEAVES)
        elif picture:
            self.names.add(entry.name)
        elif not subfolder and (own := of_its_own(entry.name)):
            self.names.add(entry.name, own)
        elif subfolder and (not is_link or self._leads_to_hidden(entry.path)):
            self.pending.add(place.replace("/", "\0"))

    def _leads_to_hidden(self, link: str) -> bool:
        """True for the first link to a folder that the walk does not come to by itself."""
        target = os.path.realpath(link)
        hidden = any(part.startswith(".") for part in Path(os.path.relpath(target, self.real_root)).parts)
        if not hidden or target in self.followed:
            return False
        self.followed.add(target)
        return True

    def _rows(self, folder: str, name: str, columns: metadata.Columns, sidecars: bool) -> Iterator[Found]:
        path = self.root / folder / name
        for row in metadata.read(path, self.options, columns):
            if not row.file_name:
                yield Found(f"{_below(folder, name)}#{row.number}", (), row.problem, row.problem)
                continue
            place = (PurePosixPath(folder) / row.file_name).as_posix()
            if (other := self.listed.add(place, f"{path} row {row.number}")) is not None:
                twice = f"{place} is listed twice, first in {other}; every picture wants one row"
                raise UserError(f"--data: {path}: row {row.number}: {twice}")
            problem = LEADS_OUT if leads_out(place) else ""
            beside = not problem and (sidecars or "/" in row.file_name)
            yield Found(place, row.captions, row.problem, problem, beside)


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
