"""Files among pictures that are not gone into: with samples of their own, or of no format that is read."""

from pathlib import Path, PurePosixPath

from data_tools.sources import metadata
from data_tools.sources.inside import is_folder
from data_tools.sources.remote import TARS

DATASETS = (".parquet", ".arrow")
"Lower-case endings of the names of files that hold a dataset."
OWN = "holds samples of its own; give it as a --data of its own"
UNREAD = frozenset(
    (
        *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"),
        *(".dds", ".eps", ".exr", ".hdr", ".pcx", ".psb", ".psd", ".svg", ".xcf"),
    )
)
"Lower-case endings of pictures of cameras and of drawing programs."


def of_its_own(name: str) -> str:
    """Why a file among pictures is not gone into, as its name says it; empty if it is nothing of note."""
    lower = name.lower()
    if lower.endswith(TARS[1:]):
        return "a compressed tar; unpack it to a .tar and give that as a --data of its own"
    if lower.endswith((*TARS, *DATASETS)) and name not in metadata.NAMES:
        return OWN
    suffix = PurePosixPath(lower).suffix
    return f"{suffix}: not a format that is read" if suffix in UNREAD else ""


def is_record(path: Path) -> bool:
    """True for what img2dataset writes down of the pictures that it has put into the folder of that name."""
    return path.suffix == ".parquet" and is_folder(path.with_suffix(""))
