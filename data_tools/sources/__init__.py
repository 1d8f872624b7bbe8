"""Where samples come from. Every source has one signature: a count, an iterator of `Sample`, and `read`."""

from data_tools.sources.folder import ImageFolder
from data_tools.sources.sample import Sample, Source, Unusable

__all__ = ["ImageFolder", "Sample", "Source", "Unusable", "open_source"]


def open_source(data: str, *, caption_column: str) -> Source:
    """The source that `--data` names. Raises `UserError` when there is none."""
    return ImageFolder.open(data, caption_column=caption_column)
