"""A full disk, told as one line."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from data_tools.errors import DataFault


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Raises `DataFault` naming `target` for whatever keeps it from being written."""
    try:
        yield
    except (OSError, SafetensorError) as err:  # safetensors has an error of its own for a full disk
        if isinstance(err, shutil.Error):  # of copytree: (source, target, why) of every file
            err = err.args[0][0][2]
        reason = getattr(err, "strerror", None) or str(err).split("\n")[0]
        raise DataFault(f"{target}: cannot be written: {reason}") from None
