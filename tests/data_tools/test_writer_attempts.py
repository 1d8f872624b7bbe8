"""What is left of an attempt that lost the race, or failed before or while it was committed."""

import errno
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data_tools.cache.manifest import Cache
from data_tools.cache.plan import plan_source
from data_tools.cache.reader import CacheReader
from data_tools.cache.rows import Container
from data_tools.cache.store import Store, open_store
from data_tools.cache.tar_part import TarPart
from data_tools.cache.writer import PartWriter
from data_tools.cache.zarr_part import ZarrPart
from tests.data_tools.caches import D, column, listed
from tests.s3 import S3Server, refused


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    place = request.getfixturevalue("s3").place() if request.param == "s3" else str(tmp_path / "cache")
    yield place
    store = open_store(place)
    store.remove_many([item.name for item in store.listed()])


@pytest.fixture(params=[ZarrPart(), TarPart(2)], ids=["zarr", "webdataset"])
def container(request: pytest.FixtureRequest) -> Container:
    return request.param


def objects(store: Store) -> set[str]:
    """Unfinished ones too; not the folders of a local store, which `data-tools gc` removes."""
    return {item.name for item in store.listed() if not item.name.endswith("/")}


def begun(place: str, container: Container) -> tuple[Store, Callable[[float], PartWriter]]:
    """A planned cache, and writers of one of its parts, each with a store of its own."""
    store = open_store(place)
    plan_source(store, listed(4), 4)
    Cache.open(store).declare(column("image"))

    def writer(value: float) -> PartWriter:
        made = PartWriter(open_store(place), column("image"), "part-00000", container=container)
        for index in range(4):
            made.add(index, f"k{index}", [{"image_embeds": np.full(D, value, dtype=np.float32)}])
        return made

    return store, writer


def embeddings(place: str) -> np.ndarray:
    reader = CacheReader(place, ["image"])
    values = reader.gather("image", reader.rows("image")[0])["image_embeds"]
    reader.close()
    return values


def test_after_a_lost_race_nothing_of_the_loser_remains(place: str, container: Container) -> None:
    store, writer = begun(place, container)
    assert writer(1).commit()
    won = objects(store)
    loser = writer(2)
    assert not loser.commit()
    assert objects(store) == won
    assert not loser.commit(), "may be tried again"
    assert objects(store) == won
    assert (embeddings(place) == 1).all()


class Full:
    """A store's `put` that fails, some bytes after the start, from the n-th on."""

    def __init__(self, store: Store, number: int) -> None:
        self.store, self.left, self.whole = store, number, store.put

    def __call__(self, name: str, chunks: Iterable[bytes]) -> None:
        self.left -= 1
        self.whole(name, self.half(chunks) if self.left < 0 else chunks)

    def half(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk[: len(chunk) // 2]
            raise OSError(errno.ENOSPC, "No space left on device", self.store.url)


def test_after_a_failed_put_nothing_remains_and_the_next_attempt_works(
    place: str, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, writer = begun(place, container)
    before = objects(store)
    puts = 8 if isinstance(container, ZarrPart) else 2
    for number in range(puts):
        failing = writer(1)
        monkeypatch.setattr(failing.store, "put", Full(failing.store, number))
        with pytest.raises(OSError, match="No space left"):
            failing.commit()
        assert objects(store) == before, number
    last = writer(3)
    monkeypatch.setattr(last.store, "put", Full(last.store, puts))
    assert last.commit(), f"there are {puts} of them"
    assert (embeddings(place) == 3).all()


def test_what_may_be_committed_stays_when_the_commit_itself_fails(
    place: str, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record may have been made, and only the answer got lost."""
    _, writer = begun(place, container)
    unlucky = writer(1)
    create = unlucky.store.create

    def made_but_lost(name: str, data: bytes) -> bool:
        create(name, data)
        raise OSError(errno.EIO, "the answer got lost", name)

    monkeypatch.setattr(unlucky.store, "create", made_but_lost)
    with pytest.raises(OSError, match="the answer got lost"):
        unlucky.commit()
    assert not writer(2).commit()
    assert (embeddings(place) == 1).all()


def test_an_object_that_s3_refuses_takes_the_attempt_with_it(s3: S3Server) -> None:
    place = s3.place()
    store, writer = begun(place, TarPart(2))
    before, failing = objects(store), writer(1)
    s3.faults[:] = [lambda environ, start, app: app(environ, start), refused("403 Forbidden", "AccessDenied")]
    with pytest.raises(PermissionError, match="AccessDenied"):
        failing.commit()
    assert not s3.faults
    assert objects(store) == before
    assert writer(2).commit()
