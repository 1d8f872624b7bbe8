"""A folder of pictures in the Hugging Face ImageFolder convention.

Picture files anywhere below the folder. Captions come from `metadata.jsonl`, `.csv` or `.parquet` beside or
above them (`file_name` relative to that file, and caption columns), from a `.txt` or `.caption` file of the
picture's name beside it, or from both, the metadata's first. A picture without either is a sample without a
caption; a row without its picture is a sample that cannot be read, as are tars and other datasets among the
pictures. Hidden files and folders are passed over.
"""

import os
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data_tools.errors import UserError
from data_tools.sources import captions, contents, holders
from data_tools.sources.inside import read_inside, status
from data_tools.sources.sample import Sample, SourceOptions, Unusable, shown
from data_tools.sources.walk import Found, picture_suffixes, walk

MAX_BYTES = 1 << 31
"Of a picture file; 178 million pixels are 0.7 GB uncompressed."

DEFAULTS = SourceOptions()


@dataclass(frozen=True)
class ImageFolder:
    """Key and place of a sample are its picture's path below `root`."""

    root: Path
    options: SourceOptions = field(default_factory=SourceOptions)

    @classmethod
    def open(cls, data: str, options: SourceOptions = DEFAULTS) -> "ImageFolder":
        """Raises `UserError` if there is no picture, or if the first metadata file is wrong."""
        root = Path(data)
        try:
            with os.scandir(root) as entries:
                empty = next(entries, None) is None
        except OSError as err:
            raise UserError(f"--data: {data}: cannot be listed: {err.strerror or err}") from None
        if empty:
            raise UserError(f"--data: {data}: no pictures found (it is empty)")
        source = cls(root, options)
        with closing(source._found()) as found:
            if all(each.problem for each in found):  # stops at the first without
                looked = f"wanted {' '.join(sorted(picture_suffixes()))}, tars or Parquet files"
                seen = f"found {contents.endings(root) or 'no files'}"
                raise UserError(f"--data: {data}: no pictures found ({seen}; {looked})")
        return source

    @cached_property
    def count(self) -> int:
        """Number of samples: all names are listed once, and the metadata files read."""
        return sum(1 for _ in self._found())

    def __iter__(self) -> Iterator[Sample]:
        return map(self._sample, self._found())

    def read(self, sample: Sample) -> bytes:
        if sample.problem:
            raise Unusable(sample.problem)
        return read_inside(self._real_root, sample.place, max_bytes=MAX_BYTES)

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self.root)

    def _found(self) -> Generator[Found]:
        for found in walk(self.root, self.options):
            if found.problem != holders.OWN or not holders.is_record(self.root / found.place):
                yield found

    def _sample(self, found: Found) -> Sample:
        texts, caption_problem = found.captions, found.caption_problem
        if found.sidecars:
            beside = captions.beside(self._real_root, found.place, self.options)
            texts, caption_problem = captions.joined((texts, caption_problem), beside)
        place = shown(found.place)
        problem = found.problem
        if not problem and place != found.place:
            problem = "file name is not UTF-8; rename the file"
        num_bytes, mtime_ns, told = (-1, 0, True) if found.problem else status(self.root / found.place)
        is_folder = bool(found.problem) and place.endswith("/")
        return Sample(
            key=place,
            captions=texts,
            place=place,
            num_bytes=num_bytes,
            mtime_ns=mtime_ns,
            problem=problem,
            caption_problem=caption_problem,
            unlisted=place if is_folder or not told else "",
        )
