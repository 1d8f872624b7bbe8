"""Which kind of source a text after `--data` names."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from data_tools.errors import UserError
from data_tools.sources import contents
from data_tools.sources.folder import ImageFolder
from data_tools.sources.remote import TARS
from data_tools.sources.sample import Source, SourceOptions

TABLES = (".csv", ".tsv", ".parquet", ".jsonl")
WANTED = f"a folder, a .tar, hf:NAME or a table ({' '.join(TABLES)})"


def open_one(data: str, options: SourceOptions) -> Source:
    """Raises `UserError` if there is nothing, or nothing that is known."""
    path = Path(data)
    if data.startswith("hf:"):
        return _hub(data, options)
    if path.is_dir():
        return _folder(path, data, options)
    name = (urlsplit(data).path if "://" in data else data).lower()
    if name.endswith(TARS[1:]):
        raise UserError(
            f"--data: {data}: found a compressed tar; unpack it to a .tar, so members can be reached"
        )
    if name.endswith(".tar"):
        return _tars(data, options)
    if "://" in data:
        raise UserError(f"--data: {data}: found a URL of an unknown kind, wanted one that ends in .tar")
    if not os.path.lexists(path):
        raise UserError(f"--data: {data}: found nothing there ({_nearest(path)}), wanted {WANTED}")
    if name.endswith(TABLES):
        from data_tools.sources.tables import TableSource

        return TableSource.open(data, options)
    kind = f"a file of an unknown kind ({path.suffix or 'its name has no ending'})"
    raise UserError(f"--data: {data}: found {kind}, wanted {WANTED}")


def _folder(path: Path, data: str, options: SourceOptions) -> Source:
    """Of a folder: pictures anywhere below it come first, then tars, then Parquet and Arrow files."""
    found = contents.look(path)
    if found.saved:
        return _hub(data, options)
    if not found.pictures and found.tars:
        return _tars(data, options)
    if not found.pictures and found.datasets:
        return _hub(data, options)
    return ImageFolder.open(data, options)


def _nearest(path: Path) -> str:
    """The last folder on the way to a path that is there."""
    parent = next((p for p in path.absolute().parents if p.is_dir()), Path("/"))
    return f"{parent} is there"


def _tars(data: str, options: SourceOptions) -> Source:
    from data_tools.sources.tars import TarSource

    return TarSource.open(data, options)


def _hub(data: str, options: SourceOptions) -> Source:
    from data_tools.sources.hub import HubSource

    return HubSource.open(data, options)
