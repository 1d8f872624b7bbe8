"""What a damaged tar still gives, and what is said of it."""

import os
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_tools.errors import UserError
from data_tools.sources.sample import Sample, Unusable
from tests.data_tools.tars import listing, opened, pictures, problems, readable, tar


def whole(tmp_path: Path) -> bytes:
    return tar(tmp_path / "whole.tar", pictures("a", "b", "c")).read_bytes()


def damaged(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "0.tar").write_bytes(data)
    return tmp_path / "0.tar"


def test_a_tar_cut_inside_a_picture_gives_the_samples_before_it(tmp_path: Path) -> None:
    path = damaged(tmp_path, whole(tmp_path)[: 2048 + 512 + 5])
    assert readable(path) == {"a": b"picture a"}
    assert problems(path) == {
        "b": "jpg: the tar ends before it does",
        "0.tar": "tar: cut short inside b.jpg",
    }


@pytest.mark.parametrize(
    ("length", "keys", "said"),
    [
        (2048, ["a"], "tar: cut short: there is no end mark"),
        (2048 + 100, ["a"], "tar: cut short inside a header, at byte 2148"),
        (2048 + 512 + 100, ["a", "b"], "tar: cut short after b.jpg"),
    ],
)
def test_a_tar_cut_between_members_is_named(tmp_path: Path, length: int, keys: list[str], said: str) -> None:
    path = damaged(tmp_path, whole(tmp_path)[:length])
    assert list(readable(path)) == keys
    assert problems(path) == {"0.tar": said}


def test_a_tar_cut_in_its_end_mark_is_named_and_all_of_it_is_there(tmp_path: Path) -> None:
    path = damaged(tmp_path, whole(tmp_path)[: 3 * 2048 + 700])
    assert list(readable(path)) == ["a", "b", "c"]
    assert problems(path) == {"0.tar": "tar: cut short inside its end mark, at byte 6844"}


@pytest.mark.parametrize("record", [512, 1024, 10240, 32768, 65536])
def test_the_end_mark_of_a_tar_fills_up_a_record(tmp_path: Path, record: int) -> None:
    members = whole(tmp_path)[: 3 * 2048]
    whole_records = -(-(len(members) + 1024) // record) * record
    path = damaged(tmp_path, members.ljust(whole_records, b"\0"))
    assert list(readable(path)) == ["a", "b", "c"]
    assert problems(path) == {}
    damaged(tmp_path, path.read_bytes() * 3)  # keys that come again are none of the tar's faults
    assert [sample.key for sample in opened(path)] == ["a", "b", "c"] * 3


@pytest.mark.parametrize("zeros", [2560, 40 << 10, 1 << 20])
def test_a_tar_whose_rest_is_zeros_is_named(tmp_path: Path, zeros: int) -> None:
    path = damaged(tmp_path, whole(tmp_path)[:4096] + bytes(zeros))
    assert list(readable(path)) == ["a", "b"]
    assert problems(path) == {"0.tar": f"tar: {zeros} bytes of zeros at byte 4096 up to its end"}


@pytest.mark.parametrize("zeros", [512, 2560, 40 << 10, 1 << 20])
def test_a_hole_of_zeros_in_a_tar_is_named_and_what_follows_is_read(tmp_path: Path, zeros: int) -> None:
    data = whole(tmp_path)
    path = damaged(tmp_path, data[:2048] + bytes(zeros) + data[4096:6144] + bytes(1024))
    assert readable(path) == {"a": b"picture a", "c": b"picture c"}
    assert problems(path) == {"0.tar": f"tar: {zeros} bytes of zeros at byte 2048"}


def test_a_hole_that_begins_and_ends_inside_pictures_is_named(tmp_path: Path) -> None:
    large = [(f"{key}.jpg", key.encode() * 3000) for key in "abcdef"]
    data = bytearray(tar(tmp_path / "large.tar", large).read_bytes())
    data[5000:13000] = bytes(8000)  # out of the second picture into the fourth
    path = damaged(tmp_path, bytes(data))
    found = readable(path)
    assert [key for key, picture in found.items() if picture == key.encode() * 3000] == ["a", "e", "f"]
    assert problems(path)["0.tar"].startswith("tar: 5632 bytes of zeros at byte 7168")


def test_a_damaged_header_loses_one_member_and_the_tar_is_named(tmp_path: Path) -> None:
    data = bytearray(whole(tmp_path))
    data[2048 + 3] ^= 0x40
    path = damaged(tmp_path, bytes(data))
    assert readable(path) == {"a": b"picture a", "c": b"picture c"}
    found = problems(path)
    assert found.keys() == {"b", "0.tar"}
    assert found["0.tar"].startswith("tar: damaged at byte 2048")


@pytest.mark.parametrize("change", ["garbage", "zeros", "lost bytes", "doubled bytes"])
def test_samples_after_a_damaged_place_are_found_again(tmp_path: Path, change: str) -> None:
    data = whole(tmp_path)
    middle = {
        "garbage": os.urandom(2048),
        "zeros": bytes(2048 - 512) + b"x" * 512,
        "lost bytes": data[2048 : 2048 + 999],
        "doubled bytes": data[2048:4096] + b"!" * 77,
    }[change]
    path = damaged(tmp_path, data[:2048] + middle + data[4096:])
    found = readable(path)
    assert found["a"] == b"picture a"
    assert found["c"] == b"picture c"
    assert problems(path)["0.tar"].startswith("tar: ")


def test_a_header_that_claims_a_terabyte_costs_nothing(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("b.jpg")
    huge.size = 1 << 40
    data = whole(tmp_path)
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = damaged(tmp_path, data[:2048] + huge.tobuf(kind) + data[4096:])
        assert sorted(readable(path)) == ["a", "c"]
        assert problems(path) == {
            "b": "jpg: the tar ends before it does",
            "0.tar": "tar: cut short inside b.jpg",
        }
    huge.type = tarfile.GNUTYPE_LONGNAME
    path = damaged(tmp_path, data[:2048] + huge.tobuf(tarfile.GNU_FORMAT) + data[4096:])
    assert sorted(readable(path)) == ["a", "c"]
    assert "a header of 1099511627776 bytes" in problems(path)["0.tar"]


@pytest.mark.parametrize(
    "record", [b"11 size=-1\n", b"99999 path=x\n", b"8 path\n", b"0 a=b\n", b"12 size=9e9\n"], ids=repr
)
def test_bad_pax_records_are_damage(tmp_path: Path, record: bytes) -> None:
    header = tarfile.TarInfo("b")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    extension = header.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
    data = whole(tmp_path)
    path = damaged(tmp_path, data[:2048] + extension + data[2048:])
    assert sorted(readable(path)) == ["a", "b", "c"]
    assert problems(path)["0.tar"].startswith("tar: damaged at byte 2048")


def test_extension_headers_without_an_end_are_damage(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type = tarfile.XHDTYPE
    data = whole(tmp_path)
    path = damaged(tmp_path, data[:2048] + header.tobuf(tarfile.USTAR_FORMAT) * 300 + data[2048:])
    assert sorted(readable(path)) == ["a", "b", "c"]
    assert "too many extension headers" in problems(path)["0.tar"]


def test_concatenated_tars_are_read_to_the_end(tmp_path: Path) -> None:
    second = tar(tmp_path / "second.tar", pictures("d")).read_bytes()
    path = damaged(tmp_path, whole(tmp_path) + second)
    assert sorted(readable(path)) == ["a", "b", "c", "d"]
    assert problems(path) == {}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "tar: empty (0 bytes)"),
        (bytes(10240), "tar: no samples in it"),
        (b"<html>not found</html>" * 100, "tar: no tar: no member found in it"),
        (b"\x1f\x8b" + bytes(600), "tar: no plain tar but packed with gzip; unpack it"),
    ],
    ids=["empty", "no members", "no tar", "gzip"],
)
def test_a_tar_without_samples_is_named_among_others_and_one_line_alone(
    tmp_path: Path, data: bytes, said: str
) -> None:
    damaged(tmp_path, data)
    with pytest.raises(UserError) as failure:
        listing(tmp_path / "0.tar")
    assert str(failure.value) == f"--data: {tmp_path}/0.tar: no picture found that can be used; 0.tar: {said}"
    tar(tmp_path / "1.tar", pictures("a"))
    assert problems(tmp_path) == {"0.tar": said}
    assert list(readable(tmp_path)) == ["a"]


def test_a_pipe_that_is_called_a_tar_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.tar")
    tar(tmp_path / "1.tar", pictures("a"))
    assert problems(tmp_path) == {"0.tar": "tar: not a regular file"}


def test_a_tar_that_changed_since_it_was_listed_is_told_at_read(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", pictures("a", "b"))
    source = opened(path)
    last = list(source)[-1]
    os.truncate(path, 1000)
    with pytest.raises(Unusable, match=r"^0\.tar ends before it does$"):
        source.read(last)
    path.unlink()
    with pytest.raises(Unusable, match=r"^no such file$"):
        source.read(last)


def test_a_place_outside_the_source_is_not_read(tmp_path: Path) -> None:
    tar(tmp_path / "secret.tar", pictures("s"))
    source = opened(tar(tmp_path / "in" / "0.tar", pictures("a")))
    for place in ("../secret.tar#512", "0.tar", f"{tmp_path}/secret.tar#512", "0.tar#-5"):
        with pytest.raises(Unusable, match="no such tar"):
            source.read(Sample("s", (), place, 9, 0))


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    source = opened(tar(tmp_path / "0.tar", pictures(*(f"k{number}" for number in range(300)))))
    samples = list(source)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(source.read, samples)) == [
            f"picture {sample.key}".encode() for sample in samples
        ]


def test_the_listing_is_lazy_and_the_same_each_time(tmp_path: Path) -> None:
    source = opened(tar(tmp_path / "0.tar", pictures(*(f"k{number}" for number in range(300)))))
    assert next(iter(source)).key == "k0"
    assert list(source) == list(source)


def test_memory_does_not_grow_with_the_tar(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        source = opened(tar(tmp_path / f"{count}.tar", pictures(*(f"{n:08d}" for n in range(count)))))
        tracemalloc.start()
        assert sum(1 for _ in source) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)  # imports
    assert peak(4000) < 500_000  # a list of all samples takes 1.6 MB
