"""The output folder: the trained model, and around it what makes it a pipeline.

Encoders are files here, never loaded. `--save` says what becomes of the base's other components:

    pipeline            copies, as they are in the base
    linked              links to the base's weights, copies of JSON and text, which people edit
    prior-only, unet-only   nothing but the scheduler, and no model_index.json

A link holds the absolute path of the file itself (the hub's cache is full of links). Nothing here ever
writes through one: a new file takes the place of what had its name. What an earlier export left in the
folder is replaced or stays; nothing is deleted.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_tools import models
from data_tools.cache.identity import digest, hash_files
from data_tools.errors import UserError
from train.options import Save
from train.writing import writing

COPIED = (".json", ".txt")
"Ends of files that are copied even where the rest is linked."


class Weights(Protocol):
    """What holds the weights to be exported, in the state to be exported."""

    def save_pretrained(self, save_directory: str | Path) -> None: ...


@dataclass(frozen=True)
class Base:
    """The pipeline that training starts from: the files around the trained component."""

    name: str
    "As the user gave it."
    flag: str
    "The flag that gives it."
    folder: Path
    components: tuple[str, ...]
    "The folders that the export takes from it: all but the trained one."
    identity: str
    "Hash of the trained component's weights and config and of the scheduler, wherever they lie."
    save: Save = "pipeline"
    "What becomes of the components."

    @classmethod
    def find(cls, name: str, trained: str, output: Path, *, flag: str, save: Save = "pipeline") -> "Base":
        """Raises `UserError` for what could not be made a pipeline of, before training rather than after."""
        folder = models.local_folder(name, (trained, "scheduler"), flag=flag)
        if folder.resolve() == output.resolve():
            raise UserError(
                f"--output-dir: {output} is the model that training starts from, wanted another folder"
            )
        components: tuple[str, ...] = ("scheduler",)
        if save != "trained-only":
            components = _components(folder, trained, name, flag)
            folder = models.local_folder(name, components, flag=flag)
        if save == "linked":
            _check_links(output)
        return cls(name, flag, folder, components, _identity(folder, trained, flag), save)


def export_pipeline(output: Path, base: Base, trained: str, model: Weights, card: Callable[[], str]) -> None:
    """Write `output` so that the stock pipeline loads it: model_index.json, all components, README.md.

    With `--save prior-only` or `unet-only` it is the trained component that loads. Raises `DataFault`.
    """
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        _save(model, output / trained)
        for name in base.components:
            _unlinked(output / name)
            put = _link if base.save == "linked" else _copy
            shutil.copytree(base.folder / name, output / name, dirs_exist_ok=True, copy_function=put)
        with _replacing(output / "README.md") as readme:
            readme.write_text(card(), encoding="utf-8")
        if base.save != "trained-only":
            _copy(base.folder / "model_index.json", output / "model_index.json")


def _save(model: Weights, folder: Path) -> None:
    """Replace the weights in `folder`, and no other file."""
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary)
        _unlinked(folder)
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            if models.WEIGHTS.fullmatch(old.name) or old.name.endswith(".safetensors.index.json"):
                old.unlink()  # shards of an earlier export would be loaded instead
        for new in temporary.iterdir():
            new.replace(folder / new.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy(source: str | Path, target: str | Path) -> None:
    with _replacing(Path(target)) as new:
        shutil.copyfile(source, new)


def _link(source: str | Path, target: str | Path) -> None:
    if Path(source).suffix in COPIED:
        _copy(source, target)
        return
    with _replacing(Path(target)) as new:
        new.symlink_to(Path(source).resolve())


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """The path of a new file, which then takes the place of `target`, or of the link of that name."""
    temporary = target.with_name(f".tmp-{target.name}")
    temporary.unlink(missing_ok=True)  # a killed export may have left a link
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _unlinked(folder: Path) -> None:
    """A component's folder that the user made a link, to the base perhaps, becomes a folder of its own."""
    if folder.is_symlink():
        folder.unlink()


def _components(folder: Path, trained: str, name: str, flag: str) -> tuple[str, ...]:
    """All of the pipeline's folders but the trained one."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except (OSError, ValueError):
        raise UserError(
            f"{flag}: {name} has no readable model_index.json; wanted a whole pipeline, or --save "
            f"{trained}-only"
        ) from None
    return tuple(k for k, v in index.items() if isinstance(v, list) and v[0] and k != trained)


def _check_links(output: Path) -> None:
    """Raises `UserError` where the folder that `output` will be in, or is, cannot hold links."""
    place = next(path for path in (output.resolve(), *output.resolve().parents) if path.is_dir())
    if not os.access(place, os.W_OK):
        return  # which is said when the run begins to write
    with tempfile.TemporaryDirectory(dir=place, prefix=".tmp-links-") as folder:
        try:
            Path(folder, "link").symlink_to("nowhere")
        except (OSError, NotImplementedError) as err:
            reason = getattr(err, "strerror", None) or str(err)
            raise UserError(
                f"--save: linked, but {place} cannot hold symbolic links ({reason}); wanted pipeline, or an "
                "--output-dir elsewhere"
            ) from None


def _identity(folder: Path, trained: str, flag: str) -> str:
    settings = {
        name: {
            key: v for key, v in models.config(folder / name, flag=flag).items() if not key.startswith("_")
        }
        for name in (trained, "scheduler")
    }
    return digest({"weights": hash_files(models.weight_files(folder / trained, flag=flag)), **settings})
