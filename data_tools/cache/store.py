"""Where a cache lives: durable atomic puts, exclusive creates, reads. Names are `/`-separated, relative.

`LocalStore` is a folder on any POSIX file system, shared ones included. An object store offers the same
six verbs (PUT is atomic there, and `create` is a PUT with `If-None-Match: *`).
"""

import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LocalStore:
    root: Path

    def put(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write a whole object durably; nobody ever sees half of it. An older one is replaced."""
        target = self.root / name
        temporary = self._write_temporary(target, chunks)
        temporary.replace(target)
        _sync_folder(target.parent)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless it exists; of any number of racing writers exactly one gets True."""
        target = self.root / name
        temporary = self._write_temporary(target, [data])
        try:
            os.link(temporary, target)  # unlike rename, link never replaces; also holds on NFS
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _sync_folder(target.parent)
        return True

    def read(self, name: str) -> bytes:
        """Raises `FileNotFoundError`."""
        return (self.root / name).read_bytes()

    def size(self, name: str) -> int | None:
        """Bytes of an object, or None if there is none."""
        try:
            return (self.root / name).stat().st_size
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """Raises `FileNotFoundError`."""
        (self.root / name).unlink()

    def names(self, folder: str) -> list[str]:
        """Names of the objects directly in a folder, sorted, without unfinished ones."""
        path = self.root / folder
        if not path.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(path) if not entry.name.startswith(".tmp-"))

    def _write_temporary(self, target: Path, chunks: Iterable[bytes | memoryview]) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".tmp-{secrets.token_hex(4)}-{target.name}"
        try:
            with temporary.open("xb", buffering=0) as file:
                for chunk in chunks:
                    _write_all(file.fileno(), memoryview(chunk).cast("B"))
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary


def _write_all(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
