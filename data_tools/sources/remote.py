"""Files that a source names by path or by URL: what a brace pattern means, sizes, ranges.

URLs go through fsspec (extra `remote`), which brings its own settings and credentials (AWS_…, ~/.aws, …).
"""

import importlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from data_tools.errors import UserError
from data_tools.sources.extras import required
from data_tools.sources.inside import LEAVES, is_inside
from data_tools.sources.sample import Unusable

MAX_FILES = 1_000_000
"Names that one brace pattern may mean."
MAX_BYTES = 1 << 31
"Size of one picture file; 178 million pixels are 0.7 GB uncompressed."
READ_AHEAD_BYTES = 1 << 20
"Read at once while a remote file is listed; smaller payloads come along, larger ones are passed over."
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
CHANGE_MARKS = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "Digest"),
    *("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified"),
)
"What file systems call that which changes with a file; the first that is there counts."
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"Lower-case endings of the names of tars; those packed are listed to be refused by name."
NO_FILE = "no such file"


@dataclass(frozen=True)
class File:
    """A file of a source."""

    name: str
    "Relative to the source, without what follows the `?` of a URL; what samples carry."
    url: str
    "Where it is: a path or a URL."
    problem: str = ""
    "Why it must not be opened."


def files_of(data: str) -> tuple[File, ...]:
    """The files that a path or URL with braces (`{00..41}`, `{train,test}`) names, in that order.

    Their names are relative to the folder that comes before the first brace. Raises `UserError`.
    """
    literal = not is_url(data) and Path(data).exists()
    names = [data] if literal else list(islice(expanded(data), MAX_FILES + 1))
    if len(names) > MAX_FILES:
        raise UserError(f"--data: {data}: means more than {MAX_FILES:,} files")
    fixed = data if literal else re.split("[{?]" if is_url(data) else "{", data)[0]
    base = fixed.rfind("/") + 1
    files = {name: File((name.split("?")[0] if is_url(name) else name)[base:], name) for name in names}
    if len({file.name for file in files.values()}) < len(files):
        raise UserError(f"--data: {data}: names two files alike but for what follows their `?`")
    return tuple(files.values())


def tars_below(folder: Path) -> tuple[File, ...]:
    """The tars in a folder and its subfolders, sorted, and what must not or cannot be looked into.

    A folder that cannot has a name that ends with a slash. Hidden files and folders are passed over.
    """
    root, found = os.path.realpath(folder), list[tuple[Path, str, str]]()
    unreadable: list[OSError] = []
    for parent, subfolders, names in os.walk(folder, onerror=unreadable.append):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        tars = [name for name in names if name.lower().endswith(TARS) and not name.startswith(".")]
        for path in (Path(parent, name) for name in (*tars, *subfolders)):
            leaves = path.is_symlink() and not is_inside(path, root)
            if leaves or path.name in tars:
                found.append((path, "", LEAVES if leaves else ""))
    found += [(Path(err.filename), "/", f"unreadable folder: {err.strerror}") for err in unreadable]
    return tuple(
        File(f"{path.relative_to(folder).as_posix()}{end}", str(path), problem)
        for path, end, problem in sorted(found)
    )


def expanded(pattern: str) -> Iterator[str]:
    """Bash's braces: `{00..41}` counts (with the zeros of its ends), `{a,b}` lists, inner ones first."""
    match = BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    for choice in _choices(match[1]):
        yield from expanded(f"{pattern[: match.start()]}{choice}{pattern[match.end() :]}")


def _choices(inside: str) -> Iterator[str]:
    if (ends := RANGE.fullmatch(inside)) is None:
        yield from inside.split(",")
        return
    width = max(map(len, ends.groups())) if any(end.startswith("0") for end in ends.groups()) else 0
    first, last = int(ends[1]), int(ends[2])
    for number in range(first, last + 1) if first <= last else range(first, last - 1, -1):
        yield f"{number:0{width}d}"


def is_url(data: str) -> bool:
    return "://" in data


def check_backend(data: str) -> None:
    """Raises `UserError` if a URL cannot be read here: no fsspec, not its protocol, nothing behind it."""
    if not is_url(data):
        return
    fsspec = required("fsspec", "remote", data)
    protocol = data.split("://", 1)[0]
    if protocol in ("http", "https"):
        required("aiohttp", "remote", data)
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as err:
        raise UserError(f"--data: {data}: cannot read from there: {_line(err)}") from None


@dataclass(frozen=True)
class Reader:
    """An open file, to be read mostly forwards, by one thread."""

    size: int
    marker: int
    "Of a local file its time of change in nanoseconds; of a remote one made of its ETag or date; 0: unknown."
    _file: BinaryIO

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on. Raises `Unusable`."""
        try:
            self._file.seek(offset)
            return self._file.read(size)
        except Exception as err:  # each backend has its own
            raise Unusable(_reason(err)) from None


@contextmanager
def opened(file: File) -> Iterator[Reader]:
    """Raises `Unusable`."""
    if file.problem:
        raise Unusable(file.problem)
    reader = _opened_remotely(file.url) if is_url(file.url) else _opened_locally(Path(file.url))
    with reader._file:
        yield reader


def _opened_locally(path: Path) -> Reader:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
            raise Unusable("not a regular file")
        return Reader(status.st_size, status.st_mtime_ns, path.open("rb"))
    except OSError as err:
        raise Unusable(_reason(err)) from None


def _opened_remotely(url: str) -> Reader:
    try:
        system, path = _system(url)
        info = system.info(path)
        file = system.open(path, "rb", block_size=READ_AHEAD_BYTES, cache_type="readahead")
        size = info["size"] if info.get("size") is not None else file.size
    except Exception as err:  # each backend has its own
        raise Unusable(_reason(err)) from None
    if size is None:
        raise Unusable("unreadable: its size is not known, so no range of it can be read")
    return Reader(int(size), _marker(info), file)


def read_range(file: File, offset: int, size: int) -> bytes:
    """`size` bytes of a file; safe in threads. Raises `Unusable`."""
    if file.problem:
        raise Unusable(file.problem)
    if size > MAX_BYTES:
        raise Unusable(f"a file of {size:,} bytes; the largest that is read has {MAX_BYTES:,}")
    try:
        if is_url(file.url):
            system, path = _system(file.url)
            data = bytes(system.cat_file(path, start=offset, end=offset + size))
        else:
            with Path(file.url).open("rb") as opened_file:
                opened_file.seek(offset)
                data = opened_file.read(size)
    except Exception as err:  # each backend has its own
        raise Unusable(_reason(err)) from None
    if len(data) != size:
        raise Unusable(f"{file.name} ends before it does")
    return data


def read_whole(url: str, max_bytes: int) -> bytes:
    """A remote file; safe in threads. Raises `Unusable`."""
    try:
        with importlib.import_module("fsspec").open(url, "rb") as file:
            data = bytes(file.read(max_bytes + 1))
    except Exception as err:  # each backend has its own
        raise Unusable(_reason(err)) from None
    if len(data) > max_bytes:
        raise Unusable(f"over the limit of {max_bytes:,} bytes")
    return data


def _system(url: str) -> tuple[Any, str]:
    """fsspec keeps file systems, and their connections, between calls."""
    system, path = importlib.import_module("fsspec.core").url_to_fs(url)
    return system, path


def _marker(info: dict[str, Any]) -> int:
    mark = next((info[name] for name in CHANGE_MARKS if info.get(name)), None)
    return 0 if mark is None else xxhash.xxh3_64_intdigest(str(mark).encode()) >> 1


def _reason(err: Exception) -> str:
    err = _cause(err)
    if isinstance(err, FileNotFoundError):
        return NO_FILE
    return f"unreadable: {getattr(err, 'strerror', None) or _line(err)}"


def _cause(err: Exception) -> Exception:
    """fsspec says `FileNotFoundError` of a server that does not answer, or answers otherwise, too."""
    cause = err.__cause__
    if not isinstance(err, FileNotFoundError) or not isinstance(cause, Exception):
        return err
    refused = getattr(cause, "status", 404) not in (404, 410)  # what an HTTP server has answered
    return cause if refused or isinstance(cause, (OSError, TimeoutError)) else err


def _line(err: Exception) -> str:
    return " ".join(str(err).split())[:300] or type(err).__name__
