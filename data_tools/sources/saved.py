"""Hugging Face datasets in a folder: what `save_to_disk` wrote, or Arrow files anywhere below it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.errors import UserError
from data_tools.sources import contents, metadata, parquet
from data_tools.sources.inside import LEAVES, is_inside, leads_out
from data_tools.sources.sample import shown

STATES = ("state.json", "dataset_dict.json")
"Files that only `save_to_disk` writes."


@dataclass(frozen=True)
class Loaded:
    """A dataset and what tells whether it has changed."""

    dataset: Any
    "`datasets.Dataset`, or `datasets.IterableDataset` if it is streamed."
    marker: int
    "Made of the commit, or of the names, sizes and times of the files; 0: unknown."
    count: int | None
    root: Path | None = None
    "Folder that picture paths are relative to; None for the Hub."
    name: str = ""
    "Of the dataset on the Hub."
    problems: tuple[tuple[str, str], ...] = ()
    "Names of files that cannot be read, and why."


def is_parquet(folder: Path) -> bool:
    """A folder with Parquet files, and neither Arrow files nor what `save_to_disk` writes."""
    if any((folder / name).exists() for name in STATES) or contents.below(folder, ".arrow"):
        return False
    return any(path.name not in metadata.NAMES for path in contents.below(folder, ".parquet"))


def from_folder(datasets: Any, data: str) -> Loaded:
    """Raises `UserError`, and what `datasets` raises."""
    folder = Path(data)
    if any((folder / name).exists() for name in STATES):
        files = _saved_files(folder)
        found = only_split(datasets.load_from_disk(data), f"--data: {data}", f"--data {data.rstrip('/')}/%s")
        return Loaded(found, contents.marker(folder, files), len(found), folder)
    files = contents.below(folder, ".arrow")
    if not files:
        raise UserError(f"--data: {data}: found neither Arrow nor Parquet files nor what save_to_disk writes")
    if any(path.name not in metadata.NAMES for path in contents.below(folder, ".parquet")):
        raise UserError(f"--data: {data}: found both Arrow and Parquet files, wanted one kind")
    if saved := [path.parent for path in files if (path.parent / "state.json").exists()]:
        raise UserError(f"--data: {data}: has datasets of their own in its folders; wanted --data {saved[0]}")
    return _of_arrow_files(datasets, data, folder, files)


def only_split(found: Any, data: str, how: str) -> Any:
    """The dataset, or the only split of several datasets. Raises `UserError` that names the splits."""
    if not isinstance(found, dict):
        return found
    if len(found) != 1:
        how = how.replace("%s", next(iter(found), "SPLIT"))
        raise UserError(f"{data}: has the splits {', '.join(found) or '(none)'}; name one: {how}")
    return next(iter(found.values()))


def _of_arrow_files(datasets: Any, data: str, folder: Path, files: list[Path]) -> Loaded:
    """One after the other; those that cannot be read are named."""
    root, read, problems = os.path.realpath(folder), [], []
    for path in files:
        name = shown(path.relative_to(folder).as_posix())
        if path.is_symlink() and not is_inside(path, root):
            problems.append((name, LEAVES))
            continue
        try:
            read.append((path, datasets.Dataset.from_file(str(path))))
        except Exception as err:  # pyarrow and `datasets` have their own
            problems.append((name, f"not an Arrow file that can be read: {parquet.line_of(err, path)}"))
    if not read:
        raise UserError(f"--data: {data}: cannot be read: {problems[0][0]}: {problems[0][1]}")
    found = datasets.concatenate_datasets([dataset for _, dataset in read])
    marker = contents.marker(folder, [path for path, _ in read])
    return Loaded(found, marker, len(found), folder, problems=tuple(problems))


def _saved_files(folder: Path) -> list[Path]:
    """The files of a saved dataset, none of which may lie elsewhere. Raises `UserError`."""
    root = os.path.realpath(folder)
    files = contents.below(folder, "")
    for path in files:
        if path.is_symlink() and not is_inside(path, root):
            raise UserError(f"--data: {path}: {LEAVES}; put the file itself there")
        if path.name == "state.json":
            state = json.loads(path.read_bytes())
            named = [file.get("filename", "") for file in state.get("_data_files") or []]
            if out := next((name for name in named if leads_out(name)), None):
                raise UserError(f"--data: {path}: names the file {out!r}, which leads out of the folder")
    return files
