"""Hugging Face datasets: `hf:NAME[:CONFIG][:SPLIT]`, folders of `save_to_disk`, of Arrow or of Parquet files.

Read by the `datasets` library (extra `hub`); code that a dataset brings is never run. Arrow files are mapped
into memory and read in any order. The Hub is streamed: the listing goes through it once, and reading again,
with 256 MB of pictures kept for threads that come late, beside what `datasets` reads ahead. A folder of
Parquet files is a table (`data_tools.sources.tables`). With HF_HUB_OFFLINE=1 the dataset comes out of the
library's own cache.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from data_tools.errors import UserError
from data_tools.sources import captions
from data_tools.sources.cursor import Cursor, Picture, picture_of
from data_tools.sources.extras import required
from data_tools.sources.inside import read_inside
from data_tools.sources.remote import read_whole
from data_tools.sources.rows import Columns, chosen, text, unchecked
from data_tools.sources.sample import Sample, SourceOptions, Unusable, shown
from data_tools.sources.tables import TableSource

LIST_ROWS = 1024
"Rows whose captions are listed at once."
READ_ROWS = 16
"Rows whose pictures are read at once where they are streamed."
MAX_BYTES = 1 << 31
"Of a picture file that a row only names."


@dataclass(frozen=True)
class Loaded:
    """A dataset and what tells whether it has changed."""

    dataset: Any
    "`datasets.Dataset`, or `datasets.IterableDataset` if it is streamed."
    marker: int
    count: int | None
    root: Path | None = None
    "Folder that picture paths are relative to; None for the Hub."
    name: str = ""
    "Of the dataset on the Hub."


@dataclass(frozen=True)
class HubSource:
    """Rows of one split. Keys are the texts in `__key__`, `key` or `id`, or else `row-00000012`."""

    data: str
    options: SourceOptions
    loaded: Loaded
    columns: Columns

    @classmethod
    def open(cls, data: str, options: SourceOptions) -> "HubSource | TableSource":
        """Raises `UserError`."""
        with one_line(data):
            parquet = not data.startswith("hf:") and _is_parquet(Path(data))
        if parquet:
            return TableSource.open(data, options)  # in a fraction of the memory that `datasets` takes
        datasets = required("datasets", "hub", data)
        with one_line(data):
            loaded = _from_hub(datasets, data) if data.startswith("hf:") else _from_folder(datasets, data)
            features = loaded.dataset.features
            if features is None:  # a stream that does not say before its first row
                features = dict.fromkeys(next(iter(loaded.dataset), {}))
            images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        if len(images) > 1 and options.image_column is None:
            raise UserError(f"--image-column: {data} has pictures in {', '.join(images)}; name one of them")
        columns = chosen(data, list(features), options, image=images[0] if images else None)
        return cls(data, options, loaded, columns)

    @property
    def count(self) -> int | None:
        return self.loaded.count

    def __iter__(self) -> Iterator[Sample]:
        """Raises `UserError` if the rows cannot be read to their end."""
        names = list(
            dict.fromkeys([*self.columns.captions, *([self.columns.key] if self.columns.key else [])])
        )
        number = 0
        for table in self._tables(names or [self.columns.image], LIST_ROWS):
            columns = [unchecked(table.column(name)).to_pylist() for name in names]
            for cells in zip(*columns) if names else [()] * table.num_rows:
                yield self._sample(number, dict(zip(names, cells)))
                number += 1
        if not number:
            raise UserError(f"--data: {self.data}: no rows in it")

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
            raise Unusable(f"row {sample.place}: unreadable: {_line(err)}") from None
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

    def _sample(self, number: int, cells: dict[str, Any]) -> Sample:
        wanted = [cells.get(name) for name in self.columns.captions]
        texts, problem = captions.of_cells(wanted, lenient=self.options.lenient)
        key = text(cells.get(self.columns.key or ""))
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


def _is_parquet(folder: Path) -> bool:
    """A folder with Parquet files, and neither Arrow files nor what `save_to_disk` writes."""
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    others = {"state.json", "dataset_dict.json"} & set(names) or [n for n in names if n.endswith(".arrow")]
    return not others and any(name.endswith(".parquet") for name in names)


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
    marker = xxhash.xxh3_64_intdigest((revision or "").encode()) >> 1 if revision else 0
    found = only_split(data, found, "hf:NAME:CONFIG:SPLIT")
    return Loaded(found, marker, len(found) if offline else None, name=name)


def _from_folder(datasets: Any, data: str) -> Loaded:
    folder = Path(data)
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    marker = max((path.stat().st_mtime_ns for path in files if path.is_file()), default=0)
    if {"state.json", "dataset_dict.json"} & {path.name for path in files}:
        found = only_split(data, datasets.load_from_disk(data), "the folder of one")
        return Loaded(found, marker, len(found), folder)
    arrow = [path for path in files if path.suffix.lower() == ".arrow"]
    if not arrow:
        raise UserError(f"--data: {data}: found neither Arrow nor Parquet files nor what save_to_disk writes")
    if any(path.suffix.lower() == ".parquet" for path in files):
        raise UserError(f"--data: {data}: found both Arrow and Parquet files, wanted one kind")
    found = datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in arrow])
    return Loaded(found, marker, len(found), folder)


def load(datasets: Any, name: str, config: str | None, **options: Any) -> Any:
    """`load_dataset`, with the code of datasets refused where the library would still run it."""
    from inspect import signature

    if "trust_remote_code" in signature(datasets.load_dataset).parameters:
        options["trust_remote_code"] = False
    return datasets.load_dataset(name, config, **options)


def only_split(data: str, found: Any, how: str) -> Any:
    """The dataset, or the only split of several datasets. Raises `UserError` that names the splits."""
    if not isinstance(found, dict):
        return found
    if len(found) != 1:
        raise UserError(f"--data: {data}: has the splits {', '.join(found) or '(none)'}; name one: {how}")
    return next(iter(found.values()))


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
