"""Files of a folder, by names that are not trusted: nothing outside the folder is read, whatever they say."""

import errno
import os
import stat
from pathlib import Path, PurePosixPath

from data_tools.sources.sample import Unusable

LEADS_OUT = "the file name leads out of the folder"
LEAVES = "symbolic link that leaves the folder"
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"Errors that say that there is no such file; others, that it cannot be looked at."


def leads_out(place: str) -> bool:
    """True for an absolute name and for one with `..` in it."""
    name = PurePosixPath(place)
    return name.is_absolute() or ".." in name.parts


def is_inside(path: str | os.PathLike[str], root: str) -> bool:
    """True if a path, its symbolic links followed, lies in `root`, a resolved path."""
    return Path(os.path.realpath(path)).is_relative_to(root)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """True for a folder and for a symbolic link to one; False for what cannot be looked at."""
    try:
        return stat.S_ISDIR(Path(path).stat().st_mode)
    except OSError:
        return False


def status(path: Path) -> tuple[int, int, bool]:
    """Size and time of change of a file, (-1, 0) if there is none; and whether that could be found out."""
    try:
        found = path.stat()
    except OSError as err:
        return -1, 0, err.errno in GONE
    except ValueError:
        return -1, 0, True
    return found.st_size, found.st_mtime_ns, True


def read_inside(root: str, place: str, *, max_bytes: int | None = None) -> bytes:
    """The bytes of a file; `root` is a resolved path. Raises `Unusable` with the reason."""
    if leads_out(place):
        raise Unusable(LEADS_OUT)
    path = Path(root, place)
    try:
        status = path.stat()
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(root):
            raise Unusable(LEAVES)
        if not stat.S_ISREG(status.st_mode):  # a pipe would keep the reader waiting for ever
            raise Unusable("unreadable file: not a regular file")
        if max_bytes is not None and status.st_size > max_bytes:
            raise Unusable(f"{status.st_size} bytes are over the limit of {max_bytes}")
        return real.read_bytes()
    except Unusable:
        raise
    except FileNotFoundError:
        raise Unusable("no such file") from None
    except (OSError, ValueError) as err:
        raise Unusable(f"unreadable file: {getattr(err, 'strerror', None) or err}") from None
