"""S3 on a bad day: answers get lost, requests conflict, connections are refused."""

from collections.abc import Iterator

import pytest

from data_tools.cache.store import Store, open_store
from data_tools.errors import UserError
from tests.s3 import BUCKET, S3Server, answer_lost, refused, unconditional


@pytest.fixture
def store(s3: S3Server) -> Iterator[Store]:
    yield open_store(s3.place())
    assert not s3.faults, "every fault was met"


def test_a_busy_server_is_asked_again(s3: S3Server, store: Store) -> None:
    busy = refused("503 Slow Down", "SlowDown")
    s3.faults[:] = [busy]
    store.put("a", [b"1"])
    s3.faults[:] = [busy, busy]
    assert store.read("a") == b"1"
    s3.faults[:] = [busy]
    assert store.create("b", b"2")


def test_a_conflict_is_no_winner_so_create_asks_again(s3: S3Server, store: Store) -> None:
    """409: S3 could not decide, for example because the object was just being deleted."""
    conflict = refused("409 Conflict", "ConditionalRequestConflict")
    s3.faults[:] = [conflict]
    assert store.create("a", b"1") is True
    assert store.read("a") == b"1"
    s3.faults[:] = [conflict]
    assert store.create("a", b"2") is False


def test_endless_conflicts_are_an_error(s3: S3Server, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_tools.cache import object_store

    monkeypatch.setattr(object_store, "CONFLICTS", 1)
    s3.faults[:] = [refused("409 Conflict", "ConditionalRequestConflict")]
    with pytest.raises(OSError, match=r"keeps refusing a conditional PUT \(409\)"):
        store.create("a", b"1")


def test_a_create_whose_answer_is_lost_still_knows_that_it_won(s3: S3Server, store: Store) -> None:
    s3.faults[:] = [answer_lost]
    assert store.create("a", b"1") is True
    assert store.create("a", b"1") is False


def test_a_store_that_ignores_conditions_is_found_out_at_the_first_create(s3: S3Server, store: Store) -> None:
    s3.faults[:] = [unconditional, unconditional]
    with pytest.raises(UserError, match=f"^{store}: this store ignores `If-None-Match`"):
        store.create("a", b"1")


def test_an_interrupted_upload_is_taken_back(s3: S3Server, store: Store) -> None:
    def chunks() -> Iterator[bytes]:
        yield bytes(20 << 20)
        raise OSError(5, "the disk went away")

    before = s3.objects()
    with pytest.raises(OSError, match="the disk went away"):
        store.put("a", chunks())
    assert s3.objects() == before
    assert b"<Upload>" not in s3.request("GET", f"{BUCKET}?uploads")


def test_a_large_put_is_uploaded_while_its_chunks_still_come(
    s3: S3Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_tools.cache import object_store

    monkeypatch.setattr(object_store, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(object_store, "UPLOADS", 1)
    start = len(s3.log)
    waiting: list[int] = []

    def chunks() -> Iterator[bytes]:
        for number in range(40):
            sent = sum("partNumber" in line for line in s3.log[start:])
            waiting.append(number - 5 * sent)
            yield bytes(1 << 20)

    store.put("a", chunks())
    assert store.size("a") == 40 << 20
    assert max(waiting) <= 16, "MiB that are neither sent nor about to be"


def test_a_small_put_is_one_request_and_a_read_another(s3: S3Server, store: Store) -> None:
    start = len(s3.log)
    store.put("a", [b"some", b"thing"])
    assert store.read("a") == b"something"
    assert store.read_into("a", 2, [bytearray(3), bytearray(2)]) == 5
    assert [line.split()[0] for line in s3.log[start:]] == ["PUT", "GET", "GET"]
