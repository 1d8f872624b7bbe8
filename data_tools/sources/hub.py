"""Hugging Face datasets: `hf:NAME[:CONFIG][:SPLIT]`, folders of `save_to_disk`, of Arrow or of Parquet files.

Read by the `datasets` library (extra `hub`); code that a dataset brings is never run. Arrow files are mapped
into memory and read in any order. The Hub is streamed: the listing goes through it once, and reading again,
with 256 MB of pictures kept for threads that come late, beside what `datasets` reads ahead. A folder of
Parquet files is read without it (`data_tools.sources.parquet_pictures`). With HF_HUB_OFFLINE=1 the dataset
comes out of the library's own cache.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from data_tools.errors import UserError
from data_tools.sources import captions, parquet
from data_tools.sources.cursor import Cursor, Picture, picture_of
from data_tools.sources.extras import required
from data_tools.sources.inside import read_inside
from data_tools.sources.parquet_pictures import ParquetPictures
from data_tools.sources.remote import read_whole
from data_tools.sources.rows import KEY_COLUMNS, Columns, chosen, differ, key_of, text
from data_tools.sources.sample import Sample, SourceOptions, Unusable, shown
from data_tools.sources.saved import Loaded, from_folder, is_parquet, only_split

LIST_ROWS = 1024
"Rows whose captions are listed at once."
READ_ROWS = 16
"Rows whose pictures are read at once where they are streamed."
MAX_BYTES = 1 << 31
"Of a picture file that a row only names."


@dataclass(frozen=True)
class HubSource:
    """Rows of one split. Keys are as of Parquet files, or `row-00000012`.

    Of a stream they are the texts in `__key__`, `key` or `id`: nobody has seen whether others differ.
    """

    data: str
    options: SourceOptions
    loaded: Loaded
    columns: Columns

    @classmethod
    def open(cls, data: str, options: SourceOptions) -> "HubSource | ParquetPictures":
        """Raises `UserError`."""
        with one_line(data):
            if not data.startswith("hf:") and is_parquet(Path(data)):
                return ParquetPictures.open(data, options)  # in a fraction of the memory
        datasets = required("datasets", "hub", data)
        with one_line(data):
            loaded = _from_hub(datasets, data) if data.startswith("hf:") else from_folder(datasets, data)
            features = loaded.dataset.features
            if features is None:  # a stream that does not say before its first row
                features = dict.fromkeys(next(iter(loaded.dataset), {}))
            images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        if len(images) > 1 and options.image_column is None:
            raise UserError(f"--image-column: {data} has pictures in {', '.join(images)}; name one of them")
        columns = chosen(data, list(features), options, image=images[0] if images else None)
        source = cls(data, options, loaded, columns)
        if loaded.dataset.features is not None:
            parquet.check_captions(data, loaded.dataset.features.arrow_schema, columns.captions)
        return replace(source, columns=replace(columns, key=source._key(list(features))))

    @property
    def count(self) -> int | None:
        """A file that cannot be read counts as one."""
        return None if self.loaded.count is None else self.loaded.count + len(self.loaded.problems)

    def __iter__(self) -> Iterator[Sample]:
        """Raises `UserError` if the rows cannot be read to their end."""
        names = list(
            dict.fromkeys([*self.columns.captions, *([self.columns.key] if self.columns.key else [])])
        )
        number = 0
        for table in self._tables(names or [self.columns.image], LIST_ROWS):
            columns = [parquet.unchecked(table.column(name)).to_pylist() for name in names]
            for cells in zip(*columns) if names else [()] * table.num_rows:
                yield self._sample(number, dict(zip(names, cells)))
                number += 1
        if not number:
            raise UserError(f"--data: {self.data}: no rows in it")
        for name, problem in self.loaded.problems:
            yield Sample(name, (), name, -1, 0, problem=problem, caption_problem=problem)

    def read(self, sample: Sample) -> bytes:
        """The bytes as they are in the dataset; of a stream, reading in the order of rows is fast."""
        if sample.problem:
            raise Unusable(sample.problem)
        if not sample.place.isdecimal():
            raise Unusable(f"no such row: {sample.place}")
        try:
            data = self._picture(int(sample.place))
        except IndexError:
            raise Unusable(f"no such row: {sample.place}") from None
        except Exception as err:  # each builder of `datasets` has its own
            raise Unusable(f"unreadable: {_line(err).removeprefix(f'--data: {self.data}: ')}") from None
        if isinstance(data, Unusable):
            raise Unusable(str(data))
        return data

    @cached_property
    def _mapped(self) -> Any:
        return self.loaded.dataset.select_columns([self.columns.image]).with_format("arrow")

    @cached_property
    def _cursor(self) -> Cursor:
        return Cursor(self._streamed)

    @property
    def _streams(self) -> bool:
        return not hasattr(self.loaded.dataset, "__len__")

    def _picture(self, row: int) -> Picture:
        if self._streams:
            return self._cursor.get(row)
        if row >= len(self.loaded.dataset):
            raise IndexError(row)
        return self._bytes(self._mapped[row : row + 1].column(0)[0].as_py())

    def _streamed(self, row: int) -> Iterator[Picture]:
        for table in self._tables([self.columns.image], READ_ROWS, row):
            for cell in table.column(0):
                yield self._bytes(cell.as_py())

    def _tables(self, names: list[str], size: int, start: int = 0) -> Iterator[Any]:
        """Arrow tables of some columns, from a row on."""
        dataset = self.loaded.dataset.skip(start) if start else self.loaded.dataset
        with one_line(self.data):
            yield from dataset.select_columns(names).with_format("arrow").iter(batch_size=size)

    def _key(self, names: list[str]) -> str | None:
        """The first key column whose values differ; of a stream the first of those that mostly do."""
        if self._streams:
            return next((name for name in KEY_COLUMNS[:3] if name in names), None)
        schema = self.loaded.dataset.features.arrow_schema
        for name in KEY_COLUMNS:
            if name in names and parquet.holds_keys(schema.field(name).type):
                tables = self._tables([name], LIST_ROWS)
                if differ(
                    cell for table in tables for cell in parquet.unchecked(table.column(0)).to_pylist()
                ):
                    return name
        return None

    def _sample(self, number: int, cells: dict[str, Any]) -> Sample:
        wanted = [cells.get(name) for name in self.columns.captions]
        texts, problem = captions.of_cells(wanted, lenient=self.options.lenient)
        key = (text if self._streams else key_of)(cells.get(self.columns.key or ""))
        name = shown(key) if key else f"row-{number:08d}"
        return Sample(name, texts, str(number), -1, self.loaded.marker, caption_problem=problem)

    def _bytes(self, cell: Any) -> Picture:
        """Of bytes, of {bytes, path}, or of a path, which may not lead out of the dataset."""
        path = cell.get("path") if isinstance(cell, dict) else cell
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        return picture_of(data, path, self._file)

    def _file(self, path: str) -> bytes:
        """Raises `Unusable`."""
        if self.loaded.root is not None:
            return read_inside(str(self.loaded.root.resolve()), path, max_bytes=MAX_BYTES)
        place = re.escape(f"hf://datasets/{self.loaded.name}")
        if ".." in path.split("/") or not re.fullmatch(rf"(zip://[^:]*::)?{place}(@[^/:]+)?/[^:]*", path):
            raise Unusable("the picture's path leads out of the dataset")
        return read_whole(path, MAX_BYTES)


def parsed(data: str) -> tuple[str, list[str]]:
    """(NAME, words after it) of `hf:NAME[:CONFIG][:SPLIT]`. Raises `UserError`."""
    name, *words = data.removeprefix("hf:").split(":")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or len(words) > 2 or ".." in name:
        raise UserError(
            f"--data: {data}: wanted hf:NAME, hf:NAME:SPLIT, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT"
        )
    return name, words


def _from_hub(datasets: Any, data: str) -> Loaded:
    hub = required("huggingface_hub", "hub", data)
    name, words = parsed(data)
    offline = hub.constants.HF_HUB_OFFLINE
    revision = None if offline else hub.HfApi().dataset_info(name).sha
    if len(words) == 1:  # one word is a configuration if there is one of that name
        known = datasets.get_dataset_config_names(name, revision=revision)
        words = [words[0], ""] if words[0] in known else ["", words[0]]
    config, split = [*words, "", ""][:2]
    found = load(
        datasets, name, config or None, split=split or None, streaming=not offline, revision=revision
    )
    found = only_split(found, f"--data: {data}", "hf:NAME:CONFIG:SPLIT")
    revision = revision or _commit(found)
    marker = xxhash.xxh3_64_intdigest(revision.encode()) >> 1 if revision else 0
    return Loaded(found, marker, len(found) if offline else None, name=name)


def _commit(dataset: Any) -> str:
    """The commit of a dataset out of the library's cache, whose folders are named by it; empty if not."""
    folders = {Path(file["filename"]).parent.name for file in dataset.cache_files}
    commits = [name for name in folders if re.fullmatch("[0-9a-f]{40}", name)]
    return commits[0] if len(folders) == len(commits) == 1 else ""


def load(datasets: Any, name: str, config: str | None, **options: Any) -> Any:
    """`load_dataset`, with the code of datasets refused where the library would still run it."""
    from inspect import signature

    if "trust_remote_code" in signature(datasets.load_dataset).parameters:
        options["trust_remote_code"] = False
    return datasets.load_dataset(name, config, **options)


@contextmanager
def one_line(data: str) -> Iterator[None]:
    """Raises `UserError` for whatever `datasets` stops at."""
    try:
        yield
    except UserError:
        raise
    except Exception as err:  # each builder of `datasets` has its own
        raise UserError(f"--data: {data}: cannot be read: {_line(err)}") from None


def _line(err: Exception) -> str:
    return " ".join(str(err).split())[:300] or type(err).__name__
