"""A folder of pictures in the Hugging Face ImageFolder convention.

Picture files anywhere below the folder, and `metadata.jsonl` beside or above them with a `file_name`
(relative to that metadata file) and a caption column that holds a string or a list of strings. Pictures
without a row are samples without a caption; rows without a picture are samples that cannot be read.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_tools.errors import UserError
from data_tools.sources.sample import Sample, Unusable

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageFolder:
    root: Path
    entries: tuple[tuple[str, tuple[str, ...]], ...]
    "(place, captions) of each sample; rows of metadata files first, in their order, then other pictures."

    @classmethod
    def open(cls, data: str, *, caption_column: str) -> "ImageFolder":
        root = Path(data)
        if not root.is_dir():
            found = "a file" if root.exists() else "nothing"
            raise UserError(f"--data: {data}: found {found}, wanted a folder of pictures")
        metadata, pictures = _scan(root)
        captions: dict[str, tuple[str, ...]] = {}
        for path in metadata:
            for place, texts in _read_metadata(path, root, caption_column):
                if place in captions:
                    raise UserError(f"--data: {path}: {place} is listed twice; every picture wants one row")
                captions[place] = texts
        for place in pictures:
            captions.setdefault(place, ())
        for place in captions:
            if place != (shown := place.encode("utf-8", "backslashreplace").decode()):
                raise UserError(f"--data: {data}: a file name that is not UTF-8: {shown}; rename it")
        if not captions:
            raise UserError(f"--data: {data}: no pictures found (looked for {' '.join(sorted(PICTURES))})")
        return cls(root, tuple(captions.items()))

    @property
    def count(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Sample]:
        for place, captions in self.entries:
            try:
                status = (self.root / place).stat()
                num_bytes, mtime_ns = status.st_size, status.st_mtime_ns
            except (OSError, ValueError):
                num_bytes, mtime_ns = -1, 0
            yield Sample(place, captions, place, num_bytes, mtime_ns)

    def read(self, sample: Sample) -> bytes:
        place = PurePosixPath(sample.place)
        if place.is_absolute() or ".." in place.parts:
            raise Unusable("the file name leads out of the folder")
        try:
            return (self.root / place).read_bytes()
        except FileNotFoundError:
            raise Unusable("no such file") from None
        except (OSError, ValueError) as err:
            raise Unusable(f"unreadable file: {getattr(err, 'strerror', None) or err}") from None


def _scan(root: Path) -> tuple[list[Path], list[str]]:
    """Metadata files and pictures below `root`, sorted; hidden files and folders are passed over."""
    metadata, pictures = [], []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            if name == "metadata.jsonl":
                metadata.append(path)
            elif path.suffix.lower() in PICTURES and not name.startswith("."):
                pictures.append(path.relative_to(root).as_posix())
    return metadata, pictures


def _read_metadata(path: Path, root: Path, column: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(place, captions) of each row. Raises `UserError` for what is not a metadata file."""
    folder = path.parent.relative_to(root)
    columns: set[str] = set()
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                name = row["file_name"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f'--data: {path}: line {number}: wanted JSON with a "file_name"') from None
            if not isinstance(name, str):
                raise UserError(f"--data: {path}: line {number}: file_name is {name!r}, wanted a string")
            columns.update(row)
            yield (folder / name).as_posix(), _captions(row.get(column))
    if columns and column not in columns:
        found = ", ".join(sorted(columns))
        raise UserError(f"--caption-column: {path} has no column {column!r}; it has: {found}")


def _captions(value: object) -> tuple[str, ...]:
    """One caption or a list of them; whatever is empty or no text is no caption."""
    values = value if isinstance(value, list) else [value]
    texts = [text for text in values if isinstance(text, str) and text.strip()]
    return tuple(text.encode("utf-8", "replace").decode() for text in texts)  # JSON may hold half surrogates
