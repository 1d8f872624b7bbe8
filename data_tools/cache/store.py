"""Where a cache lives: durable atomic puts, exclusive creates, ranged reads. Names are relative, with `/`.

`LocalStore` is a folder on any POSIX file system, shared ones included; `data_tools.cache.object_store` is
S3 and what speaks its protocol. Nothing in a cache depends on renaming or on a listing being up to date.
"""

import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol
from urllib.request import url2pathname

from data_tools.errors import DataFault, UserError

TEMPORARY = ".tmp-"
"Beginning of the names of files that a writer has not finished."
OPEN_FILES = 512
"Most files that a local store keeps open."
MOST_BUFFERS = 1024
"Of one `preadv` (IOV_MAX)."

WRITE_BYTES = 8 << 20
"""Files are written in pieces of this size: the page cache then keeps them in large folios, from which rows
are read up to a third faster than after writes of odd sizes."""

Buffer = Any
"Writable contiguous bytes: a memoryview, a bytearray, an ndarray of uint8."


class Listed(NamedTuple):
    """An object as a listing has it; a folder's name ends with `/`, and its size is 0."""

    name: str
    size: int
    modified: float
    "Seconds since 1970, by the clock of the place."


class Store(Protocol):
    """Verbs raise `OSError` (its `filename` is the whole place) when the place itself fails, and `DataFault`
    for a name that would lead out of the cache. All of them may be called from any thread."""

    @property
    def url(self) -> str:
        """For messages; `open_store` opens it again."""

    @property
    def concurrency(self) -> int:
        """Threads that a reader should use."""

    @property
    def coalesce_bytes(self) -> int:
        """Gaps up to this size are cheaper to read through than to skip."""

    def put(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write a whole object durably; nobody ever sees half of it. An older one is replaced.

        The object is never in memory as a whole. What `chunks` raises is raised, and nothing is left.
        """

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless it exists; of any number of racing writers exactly one gets True."""

    def read(self, name: str) -> bytes:
        """Raises `FileNotFoundError`."""

    def read_into(self, name: str, offset: int, buffers: Sequence[Buffer]) -> int:
        """Fill the buffers in turn with the bytes from `offset` on; the number of bytes read.

        Less than their size only where the object ends. Objects that are read so must not change: a file
        that another process replaces may be read as it was. Raises `FileNotFoundError`.
        """

    def size(self, name: str) -> int | None:
        """Bytes of an object, or None if there is none."""

    def remove(self, name: str) -> None:
        """Raises `FileNotFoundError`."""

    def names(self, folder: str) -> list[str]:
        """Names of objects and folders directly in a folder ('': the cache's own), sorted; whole ones."""

    def listed(self, folder: str = "") -> Iterator[Listed]:
        """All objects below a folder, in any order, as the listing comes in; unfinished ones, strangers'
        and (locally) folders too. Links are not followed."""

    def remove_many(self, names: Sequence[str]) -> None:
        """Remove objects, and folders that are empty then. What is not there is no error."""

    def close(self) -> None:
        """Let go of files and connections. The store can still be used."""


def open_store(place: str | Path, *, flag: str = "--cache") -> Store:
    """The store at a local folder, `file://` or `s3://bucket/prefix`; the place need not hold a cache yet.

    Credentials and endpoint of an object store come from the environment. Raises `UserError`, beginning with
    `flag`, for an unknown scheme, a missing extra and an object store that cannot be reached.
    """
    folder = local_folder(place, flag=flag)
    if folder is not None:
        return LocalStore(folder)
    try:
        from data_tools.cache.object_store import open_s3
    except ModuleNotFoundError as err:
        if err.name != "obstore":
            raise
        wanted = "needs the extra 's3': pip install 'kandinsky-cache[s3]'"
        raise UserError(f"{flag}: {place} {wanted}") from None
    return open_s3(str(place), flag=flag)


def local_folder(place: str | Path, *, flag: str = "--cache") -> Path | None:
    """The folder that a place names, None if it is on an object store. Raises `UserError`."""
    text = str(place)
    if re.match(r"(s3|file):/[^/]", text):  # a pathlib.Path makes this of s3://bucket
        raise UserError(f"{flag}: found {text}, wanted {text.replace(':/', '://', 1)}")
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", text)
    if scheme is None:
        return Path(place)
    if scheme[1] == "s3":
        return None
    if scheme[1] == "file" and text.startswith("file:///"):
        return Path(url2pathname(text.removeprefix("file://")))
    raise UserError(f"{flag}: found {text}, wanted a folder, file:///folder or s3://bucket/prefix")


def checked_name(name: str, url: str) -> str:
    """The name itself. Raises `DataFault` if it would lead out of the cache, whose JSON it comes from."""
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise DataFault(f"{url}: it names an object {name!r}, which is not inside it")
    return name


class LocalStore:
    """A folder. Files that were read with `read_into` stay open, at most `OPEN_FILES` of them."""

    concurrency = 16
    coalesce_bytes = 0

    def __init__(self, root: Path) -> None:
        self.root, self.url = root, str(root)
        self._files = _OpenFiles()

    def __str__(self) -> str:
        return self.url

    def put(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """See `Store.put`."""
        target = self._path(name)
        temporary = self._write_temporary(target, chunks)
        temporary.replace(target)
        _sync_folder(target.parent)
        self._files.forget(name)

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        target = self._path(name)
        temporary = self._write_temporary(target, [data])
        try:
            with _blaming(target, temporary):
                os.link(temporary, target)  # unlike rename, link never replaces; also holds on NFS
        except FileExistsError:  # or NFS has asked twice, and found what it made itself
            return temporary.stat().st_nlink > 1
        finally:
            temporary.unlink()
        _sync_folder(target.parent)
        return True

    def read(self, name: str) -> bytes:
        """Raises `FileNotFoundError`."""
        return self._path(name).read_bytes()

    def read_into(self, name: str, offset: int, buffers: Sequence[Buffer]) -> int:
        """See `Store.read_into`."""
        file = self._files.get(name) or self._files.add(name, FileIO(self._path(name)))
        if len(buffers) <= MOST_BUFFERS:
            return os.preadv(file.fileno(), buffers, offset)
        done = 0
        for start in range(0, len(buffers), MOST_BUFFERS):
            some = buffers[start : start + MOST_BUFFERS]
            count = os.preadv(file.fileno(), some, offset + done)
            done += count
            if count < sum(memoryview(buffer).nbytes for buffer in some):
                break
        return done

    def size(self, name: str) -> int | None:
        """See `Store.size`."""
        try:
            status = self._path(name).stat()
        except FileNotFoundError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def remove(self, name: str) -> None:
        """Raises `FileNotFoundError`."""
        self._path(name).unlink()
        self._files.forget(name)

    def names(self, folder: str) -> list[str]:
        """See `Store.names`."""
        path = self._path(folder) if folder else self.root
        entries = os.scandir(path) if path.is_dir() else ()
        return sorted(entry.name for entry in entries if not entry.name.startswith(TEMPORARY))

    def listed(self, folder: str = "") -> Iterator[Listed]:
        """See `Store.listed`."""
        path = self._path(folder) if folder else self.root
        for entry in list(os.scandir(path)) if path.is_dir() else []:
            with suppress(FileNotFoundError):  # gone since
                status, name = entry.stat(follow_symlinks=False), f"{folder}/{entry.name}".lstrip("/")
                if stat.S_ISDIR(status.st_mode):
                    yield from self.listed(name)
                    name += "/"
                yield Listed(name, 0 if name.endswith("/") else status.st_size, status.st_mtime)

    def remove_many(self, names: Sequence[str]) -> None:
        """See `Store.remove_many`."""
        for name in sorted(names, reverse=True):  # what is in a folder before the folder
            if name.endswith("/"):
                with suppress(OSError):  # not empty
                    self._path(name[:-1]).rmdir()
            else:
                self._path(name).unlink(missing_ok=True)
                self._files.forget(name)

    def close(self) -> None:
        """Let go of the open files; those being read close when they have been read."""
        self._files.clear()

    def _path(self, name: str) -> Path:
        return self.root / checked_name(name, self.url)

    def _write_temporary(self, target: Path, chunks: Iterable[bytes | memoryview]) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{TEMPORARY}{secrets.token_hex(4)}-{target.name}"
        try:
            with _blaming(target, temporary), temporary.open("xb", buffering=WRITE_BYTES) as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary


class _OpenFiles:
    """Open files by name; when there are too many, the one that was opened first is let go.

    A file closes when nobody holds it any more, so an eviction never closes one that is being read.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: dict[str, FileIO] = {}
        self.get = self._open.get

    def add(self, name: str, file: FileIO) -> FileIO:
        with self._lock:
            self._open[name] = file
            if len(self._open) > OPEN_FILES:
                del self._open[next(iter(self._open))]
            return file

    def forget(self, name: str) -> None:
        with self._lock:
            self._open.pop(name, None)

    def clear(self) -> None:
        with self._lock:
            self._open.clear()


@contextmanager
def _blaming(target: Path, temporary: Path) -> Iterator[None]:
    """Errors that name the temporary file, or none (a full disk), name the file that was to be."""
    try:
        yield
    except OSError as err:
        if err.filename is not None and Path(err.filename) != temporary:
            raise
        raise OSError(err.errno, err.strerror, str(target)) from err


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
