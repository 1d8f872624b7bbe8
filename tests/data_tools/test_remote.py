"""Files behind URLs: what tells that one has changed, and what is said where one cannot be reached."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_tools.errors import UserError
from data_tools.sources import Unusable, open_source
from data_tools.sources.remote import CHANGE_MARKS, File, check_backend, opened, read_range
from tests.data_tools.tars import opened as tars_at
from tests.data_tools.tars import pictures, tar


@dataclass
class Server:
    """What a file system tells of each file beside its size, and what becomes of asking it."""

    says: dict[str, object] = field(default_factory=dict)
    fails: Exception | None = None

    def info(self, system: MemoryFileSystem, path: str, **_: object) -> dict[str, Any]:
        if self.fails is not None:
            raise FileNotFoundError(path) from self.fails
        return {"name": path, "size": len(system.cat_file(path)), "type": "file", **self.says}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """memory://remote/0.tar with one sample."""
    server = Server()
    fsspec.filesystem("memory").pipe("/remote/0.tar", tar(tmp_path / "0.tar", pictures("a")).read_bytes())
    monkeypatch.setattr(MemoryFileSystem, "info", lambda self, path, **_: server.info(self, path))
    return server


def marker() -> int:
    (sample,) = tars_at("memory://remote/0.tar")
    return sample.mtime_ns


@pytest.mark.parametrize("name", CHANGE_MARKS)
def test_each_mark_of_a_change_is_taken_note_of(server: Server, name: str) -> None:
    server.says = {name: "Mon, 23 Nov 2026 10:00:00 GMT"}
    before = marker()
    assert before not in (0, 1)
    assert marker() == before
    server.says = {name: "Mon, 23 Nov 2026 10:00:01 GMT"}
    assert marker() not in (0, before)


def test_an_etag_counts_more_than_a_date(server: Server) -> None:
    server.says = {"Last-Modified": "Mon, 23 Nov 2026 10:00:00 GMT", "ETag": "x"}
    before = marker()
    server.says["Last-Modified"] = "Mon, 23 Nov 2026 10:00:01 GMT"
    assert marker() == before


def test_the_marks_are_those_that_the_http_file_system_knows() -> None:
    assert {"ETag", "Content-MD5", "Digest", "Last-Modified"} <= set(CHANGE_MARKS)


def test_a_file_of_which_nothing_tells_of_changes_has_the_mark_0(server: Server) -> None:
    assert marker() == 0


class Answered(Exception):
    """What aiohttp raises for an answer other than 2xx."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, message='…'")
        self.status = status


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "unreadable: Connection refused"),
        (TimeoutError("no answer"), "unreadable: no answer"),
        (Answered(503), "unreadable: 503, message='…'"),
        (Answered(404), "no such file"),
        (FileNotFoundError("x"), "no such file"),
        (ValueError("An error occurred (404)"), "no such file"),
    ],
    ids=repr,
)
def test_a_server_that_does_not_answer_is_told_from_a_file_that_is_not_there(
    server: Server, cause: Exception, said: str
) -> None:
    server.fails = cause
    with pytest.raises(Unusable) as failure, opened(File("0.tar", "memory://remote/0.tar")):
        pass
    assert str(failure.value) == said


def test_a_tar_that_cannot_be_reached_now_says_so_beside_others(server: Server, tmp_path: Path) -> None:
    server.fails = ConnectionRefusedError(111, "Connection refused")
    samples = list(open_source([str(tar(tmp_path / "1.tar", pictures("b"))), "memory://remote/0.tar"]))
    assert [(s.key, s.problem, s.unlisted) for s in samples] == [
        ("b", "", ""),
        ("0.tar", "tar: unreadable: Connection refused", "0.tar#"),
    ]


def test_a_tar_that_cannot_be_read_on_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    data = fsspec.filesystem("memory").cat_file("/remote/0.tar")
    monkeypatch.setattr(MemoryFileSystem, "open", lambda *_, **__: Breaking(data))
    *samples, fault = tars_at("memory://remote/0.tar")
    assert [sample.key for sample in samples] == ["a"]
    assert (fault.problem, fault.unlisted) == ("tar: unreadable: reset after a.jpg", "0.tar#")


class Breaking:
    """A file whose connection is lost behind its first member."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def __enter__(self) -> "Breaking":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def seek(self, offset: int) -> None:
        self.at = offset

    def read(self, size: int) -> bytes:
        if self.at >= 1024:
            raise ConnectionResetError(104, "reset")
        return self.data[self.at : self.at + size]


def test_http_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    for protocol in ("http", "https"):
        with pytest.raises(UserError) as failure:
            check_backend(f"{protocol}://x/0.tar")
        advice = "needs the library aiohttp: pip install 'kandinsky-cache[remote]'"
        assert str(failure.value) == f"--data: {protocol}://x/0.tar: {advice}"


def test_a_read_behind_the_end_of_a_file_is_said(server: Server) -> None:
    file = File("0.tar", "memory://remote/0.tar")
    assert read_range(file, 512, 9) == b"picture a"
    with pytest.raises(Unusable, match=r"^0\.tar ends before it does$"):
        read_range(file, 1 << 20, 9)
