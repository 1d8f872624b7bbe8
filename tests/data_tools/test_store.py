"""What a cache asks of the place it lives in, held to by a folder, an object store in memory and S3 alike."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_tools.cache import store as stores
from data_tools.cache.store import LocalStore, Store, open_store
from data_tools.errors import DataFault


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        found: Store = LocalStore(tmp_path / "cache")
    elif request.param == "s3":
        found = open_store(request.getfixturevalue("s3").place())
    else:
        memory = pytest.importorskip("obstore.store").MemoryStore()
        from data_tools.cache.object_store import ObjectStore

        found = ObjectStore(memory, "memory://")
    yield found
    found.close()


def buffers(*sizes: int) -> list[np.ndarray]:
    return [np.zeros(size, dtype=np.uint8) for size in sizes]


def test_a_put_object_is_read_back_whole_and_replaces_an_older_one(store: Store) -> None:
    store.put("a/b", [b"fir", b"", memoryview(b"st"), memoryview(np.arange(2, dtype=np.uint16))])
    assert store.read("a/b") == b"first\0\0\1\0"
    assert store.size("a/b") == 9
    store.put("a/b", [b"second"])
    assert store.read("a/b") == b"second"
    store.put("a/b", [])
    assert (store.read("a/b"), store.size("a/b")) == (b"", 0)


def test_an_object_of_many_pieces_is_read_back_whole(store: Store) -> None:
    chunk = np.random.default_rng(0).bytes(1 << 20)
    chunks = [chunk[number:] + chunk[:number] for number in range(17)]  # over two uploads' size, not even
    store.put("large", [*chunks, b"tail"])
    assert store.size("large") == (17 << 20) + 4
    assert store.read("large") == b"".join(chunks) + b"tail"
    (found,) = buffers(1 << 20)
    assert store.read_into("large", 16 << 20, [found]) == 1 << 20
    assert found.tobytes() == chunks[16]


def test_a_buffer_may_be_used_again_for_the_next_chunk(store: Store) -> None:
    buffer = bytearray(5 << 20)

    def chunks() -> Iterator[memoryview]:
        for number in range(4):
            buffer[:] = bytes([number]) * len(buffer)
            yield memoryview(buffer)

    store.put("large", chunks())
    assert store.read("large") == b"".join(bytes([number]) * len(buffer) for number in range(4))


@pytest.mark.parametrize("size", [10, 20 << 20])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["E", "C"]
)
def test_an_interrupted_put_leaves_nothing_visible(store: Store, size: int, error: BaseException) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(4):
            yield bytes(size // 4)
        raise error

    with pytest.raises(type(error)):
        store.put("folder/new", chunks())
    assert store.names("folder") == []
    assert store.size("folder/new") is None
    store.put("folder/old", [b"whole"])
    with pytest.raises(type(error)):
        store.put("folder/old", chunks())
    assert store.read("folder/old") == b"whole"
    assert store.names("folder") == ["old"]


def test_create_never_replaces(store: Store) -> None:
    assert store.create("a/b", b"first") is True
    assert store.create("a/b", b"first") is False
    assert store.create("a/b", b"second") is False
    assert store.read("a/b") == b"first"
    store.put("a/c", [b"put"])
    assert store.create("a/c", b"second") is False
    store.remove("a/b")
    assert store.create("a/b", b"second") is True


def test_of_many_racing_creates_exactly_one_wins(store: Store) -> None:
    for turn in range(5):
        barrier, won = threading.Barrier(8), []

        def race(number: int, name: str, barrier: threading.Barrier, won: list[int]) -> None:
            barrier.wait()
            if store.create(name, b"%d" % number):
                won.append(number)

        threads = [threading.Thread(target=race, args=(n, f"race-{turn}", barrier, won)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.read(f"race-{turn}") == b"%d" % won[0]


def test_what_is_not_there_is_said_to_be_missing(store: Store) -> None:
    assert store.size("no/such") is None
    assert store.names("no") == []
    for verb in (store.read, store.remove, lambda name: store.read_into(name, 0, buffers(4))):
        with pytest.raises(FileNotFoundError) as caught:
            verb("no/such")
        assert str(caught.value.filename) == f"{store}/no/such"


def test_a_folder_is_no_object(store: Store) -> None:
    store.put("a/b/c", [b"1"])
    assert store.size("a/b") is None
    assert store.size("a") is None


def test_a_removed_object_is_gone(store: Store) -> None:
    store.put("a/b", [b"1"])
    assert store.read_into("a/b", 0, buffers(1)) == 1
    store.remove("a/b")
    assert store.size("a/b") is None
    assert store.names("a") == []
    with pytest.raises(FileNotFoundError):
        store.read_into("a/b", 0, buffers(1))


def test_names_are_objects_and_folders_directly_inside(store: Store) -> None:
    names = [f"part-{number:05d}.json" for number in range(8)]
    for name in reversed(names):
        store.put(f"columns/latents@64/commits/{name}", [b"{}"])
    store.put("columns/latents@64/column.json", [b"{}"])
    store.put("columns/image/column.json", [b"{}"])
    store.put("columns-2/x", [b"{}"])
    assert store.names("columns/latents@64/commits") == names
    assert store.names("columns/latents@64") == ["column.json", "commits"]
    assert store.names("columns") == ["image", "latents@64"]
    assert store.names("") == ["columns", "columns-2"]


def test_a_ranged_read_fills_the_buffers_in_turn(store: Store) -> None:
    store.put("object", [bytes(range(100))])
    first, gap, empty, second = np.zeros(5, np.uint8), bytearray(2), np.zeros(0, np.uint8), bytearray(4)
    batch = np.zeros((3, 10), dtype=np.uint8)
    assert store.read_into("object", 10, [first, gap, empty, memoryview(second), batch[1]]) == 21
    assert first.tolist() == [10, 11, 12, 13, 14]
    assert (list(gap), list(second)) == ([15, 16], [17, 18, 19, 20])
    assert batch.tolist() == [[0] * 10, list(range(21, 31)), [0] * 10]
    assert store.read_into("object", 10, []) == 0


def test_a_ranged_read_stops_where_the_object_ends(store: Store) -> None:
    store.put("object", [bytes(range(10))])
    first, second = buffers(4, 4)
    assert store.read_into("object", 7, [first, second]) == 3
    assert first.tolist() == [7, 8, 9, 0]
    assert not second.any()
    assert store.read_into("object", 10, buffers(4)) == 0
    assert store.read_into("object", 1000, buffers(4)) == 0
    store.put("empty", [])
    assert store.read_into("empty", 0, buffers(4)) == 0


@pytest.mark.parametrize("start", [0, 1500])
def test_a_ranged_read_takes_any_number_of_buffers(store: Store, start: int) -> None:
    data = np.random.default_rng(0).bytes(5000)
    store.put("object", [data])
    many = buffers(*[3] * 2500)
    assert store.read_into("object", start, many) == min(7500, 5000 - start)
    assert np.concatenate(many).tobytes().startswith(data[start:])


def test_a_ranged_read_sees_an_object_that_this_store_has_replaced(store: Store) -> None:
    (found,) = buffers(3)
    store.put("object", [b"old"])
    store.read_into("object", 0, [found])
    store.put("object", [b"new"])
    store.read_into("object", 0, [found])
    assert found.tobytes() == b"new"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "a/..", "", "a\0b"])
def test_a_name_that_leads_out_of_the_place_is_refused(store: Store, name: str) -> None:
    verbs = [
        store.read,
        store.size,
        store.remove,
        lambda name: store.put(name, [b"1"]),
        lambda name: store.create(name, b"1"),
        lambda name: store.read_into(name, 0, buffers(1)),
        lambda name: store.remove_many([name]),
        *([store.names, lambda name: list(store.listed(name))] if name else []),
    ]
    for verb in verbs:
        with pytest.raises(DataFault, match="which is not inside it"):
            verb(name)


def test_a_store_says_how_it_wants_to_be_read(store: Store) -> None:
    local = isinstance(store, LocalStore)
    assert store.concurrency == (16 if local else 32)
    assert store.coalesce_bytes == (0 if local else 1 << 20)
    assert str(store) == store.url


def test_files_that_are_let_go_while_they_are_read_still_give_their_own_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "OPEN_FILES", 2)
    store = LocalStore(tmp_path)
    for number in range(20):
        store.put(f"{number}", [bytes([number]) * 1000])
    wrong = []

    def read(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 20, 300).tolist():
            (found,) = buffers(1000)
            if store.read_into(f"{number}", 0, [found]) != 1000 or (found != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(store._files._open) <= 2
    store.close()
    assert not store._files._open
    assert store.read_into("3", 0, buffers(1)) == 1
