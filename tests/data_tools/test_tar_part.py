"""A part is a plain webdataset tar: webdataset itself reads every row, in blocks or one a key."""

import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.cache.tar_part import TarPart
from tests.data_tools.caches import BUCKETS, Made, Row, build
from tests.data_tools.origins import opened

wds = pytest.importorskip("webdataset")


def samples(root: Path, column: str) -> list[dict[str, Any]]:
    """What webdataset makes of a column's parts, with its own decoder."""
    urls = [str(path) for path in sorted(root.glob(f"columns/{column}/*/parts/part-*.tar"))]
    return list(wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode())


def wanted(made: Made, column: str) -> list[tuple[str, Row]]:
    """(key, row) of each row, in the order of the parts."""
    return [(key, row) for key, rows in made[column].items() if key for row in rows]


def cut(sample: dict[str, Any], field: str) -> list[np.ndarray]:
    """The rows of a field in one block, by nothing but what stands in the block."""
    value = sample[f"{field}.npy"]
    if (offsets := sample.get(f"{field}_offsets.npy")) is None:
        return list(value)
    assert offsets[0] == 0
    assert offsets[-1] == len(value)
    rows = [value[begin:end] for begin, end in pairwise(offsets)]
    shapes = sample.get(f"{field}_shape.npy")
    return rows if shapes is None else [row.reshape(s) for row, s in zip(rows, shapes, strict=True)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("block", [4, 32])
@pytest.mark.parametrize("buckets", [(), BUCKETS], ids=["one shape", "buckets"])
def test_webdataset_finds_the_same_rows_in_blocks(
    tmp_path: Path, dtype: str, block: int, buckets: tuple[tuple[int, int], ...]
) -> None:
    made = build(
        tmp_path, dtype=dtype, count=36, part_size=20, buckets=buckets, views=2, container=TarPart(block)
    )
    for column in made:
        found = samples(tmp_path, column)
        assert max(len(sample["json"]["keys"]) for sample in found) == block
        rows = wanted(made, column)
        assert [key for sample in found for key in sample["json"]["keys"]] == [key for key, _ in rows]
        for field in rows[0][1]:
            assert {sample["json"]["dtype"][field] for sample in found} == {dtype}
            values = [value for sample in found for value in cut(sample, field)]
            for value, (key, row) in zip(values, rows, strict=True):
                assert (value.dtype, value.shape) == (row[field].dtype, row[field].shape), key
                assert np.array_equal(value, row[field]), key


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("buckets", [(), BUCKETS], ids=["one shape", "buckets"])
def test_with_block_1_each_row_stands_alone_in_its_own_shape(
    tmp_path: Path, dtype: str, buckets: tuple[tuple[int, int], ...]
) -> None:
    made = build(tmp_path, dtype=dtype, count=7, buckets=buckets, views=2, container=TarPart(1))
    for column in made:
        found, rows = samples(tmp_path, column), wanted(made, column)
        for sample, (key, row) in zip(found, rows, strict=True):
            assert sample["json"]["keys"] == [key]
            assert {name for name in sample if name.endswith(".npy")} == {f"{field}.npy" for field in row}
            for field, value in row.items():
                assert sample[f"{field}.npy"].dtype == value.dtype
                np.testing.assert_array_equal(sample[f"{field}.npy"], value, strict=True)


def test_members_are_plain_ustar_sorted_and_without_owner_or_time(tmp_path: Path) -> None:
    build(tmp_path, buckets=BUCKETS, views=2, container=TarPart(4))
    for path in tmp_path.glob("columns/*/*/parts/*.tar"):
        data = path.read_bytes()
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert [member.name for member in members] == sorted(member.name for member in members)
        for member in members:
            header = data[member.offset : member.offset + 512]
            assert header[257:265] == b"ustar\x0000"
            assert header[156:157] == tarfile.REGTYPE  # no pax or GNU extension anywhere
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
        end = members[-1].offset_data + -(-members[-1].size // 512) * 512
        assert data[end:] == bytes(1024)


def test_blocks_aim_at_a_size_when_no_number_of_rows_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_tools.cache.tar_part.BLOCK_BYTES", 700)
    made = build(tmp_path, count=12, part_size=12, buckets=BUCKETS, container=TarPart())
    sizes = [len(sample["json"]["keys"]) for sample in samples(tmp_path, "latents@24")]
    mean = sum(row["latents"].nbytes for _, row in wanted(made, "latents@24")) / 12
    assert set(sizes) == {4}
    assert 350 < 4 * mean <= 700


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        build(tmp_path / name, buckets=BUCKETS, container=TarPart(4))

    def hashes(root: Path) -> list[str]:
        columns = [opened(root).column(name) for name in opened(root).column_names()]
        commits = [commit for column in columns for commit in opened(root).commits(column).values()]
        return [item.xxh3_128 for commit in commits for item in commit.objects if item.name.endswith(".tar")]

    assert hashes(tmp_path / "first") == hashes(tmp_path / "second")
