"""Where samples come from. Every source has one signature: a count, an iterator of `Sample`, and `read`."""

from collections.abc import Sequence
from pathlib import Path

from data_tools.sources.dispatch import open_one
from data_tools.sources.folder import ImageFolder
from data_tools.sources.sample import Sample, Source, SourceOptions, Unusable
from data_tools.sources.several import Several, selected

__all__ = ["ImageFolder", "Sample", "Source", "SourceOptions", "Unusable", "open_source"]

DEFAULT = SourceOptions()


def open_source(
    data: Sequence[str],
    options: SourceOptions = DEFAULT,
    *,
    max_samples: int | None = None,
    select: Path | None = None,
) -> Source:
    """The sources that `--data` names, as one: the first `max_samples` of the keys in the file `select`.

    Raises `UserError`, here for what cannot be a source and while it is listed for what it holds.
    """
    keys = None if select is None else selected(select)
    sources = tuple(open_one(name, options) for name in data)
    return Several(sources, tuple(data), max_samples, keys, str(select or ""))
