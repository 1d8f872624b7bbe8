"""One raw input, and what a source of them must offer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class Unusable(ValueError):
    """This sample cannot be used; the text is the reason that the reject list shows."""


@dataclass(frozen=True)
class Sample:
    """A picture with its captions, as the source lists it: nothing has been read or decoded yet."""

    key: str
    "Stable name, unique within the source."
    captions: tuple[str, ...]
    "Zero or more captions, as they stand in the source."
    place: str
    "Where the source finds the picture again, relative to the source."
    num_bytes: int
    "Size of the file that holds the picture; -1 if it is not one file, or not there."
    mtime_ns: int
    "Time of the last change, nanoseconds since 1970; where it is as before, so is the picture. 0: not known."
    xxh3_128: str = ""
    "Hash of the picture's file, taken when the plan is made; empty if it cannot be read."
    source: int = 0
    "Which of several sources lists it, in the order of `--data`."
    problem: str = ""
    "Why the picture cannot be used, where that shows when it is listed."
    caption_problem: str = ""
    "Why it has no caption, where there is more to say than that it has none."
    picture_was: str = ""
    "`part:position` of the sample that this one replaces, if the picture is the same; set by the plan."
    captions_was: str = ""
    "The same if the captions are."
    unlisted: str = ""
    """Set where something is there that could not be looked at this time: its place, or the beginning of the
    places of all that is in it (`folder/`, `0.tar#`). What was known of it stays planned. Never stored."""


USUAL_CAPTIONS = ("text",)
"Columns of tables and metadata that captions are looked for in if the user names none."


def shown(name: str) -> str:
    """A name as text that can be printed and stored: bytes that are not UTF-8 come out as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class SourceOptions:
    """How captions and pictures are found in a source."""

    caption_columns: tuple[str, ...] = ()
    "Columns (or JSON keys) with a caption or a list of them; all their captions; none: the usual columns."
    image_column: str | None = None
    "Column with the picture's path or bytes; None: the usual names are tried."
    caption_lines: bool = False
    "Each line of a caption file is a caption of its own."
    lenient: bool = False
    "Decode captions that are not UTF-8 with replacement characters."


class Source(Protocol):
    """Samples in a fixed order."""

    @property
    def count(self) -> int | None:
        """Number of samples, or None if the source cannot tell before it is read."""

    def __iter__(self) -> Iterator[Sample]: ...

    def read(self, sample: Sample) -> bytes:
        """The picture's file. Raises `Unusable`."""
