"""A part is a plain zarr v3 group: zarr itself opens it, and finds a flipped bit."""

from pathlib import Path

import numpy as np
import pytest

from data_tools.cache import zarr_part
from data_tools.cache.zarr_part import ChunkGrid
from tests.data_tools.caches import build

zarr = pytest.importorskip("zarr", reason="zarr has no release for this Python")

FIELDS = {
    "image": ("image_embeds",),
    "text": ("prompt_embeds", "text_encoder_hidden_states"),
    "latents@24": ("latents",),
}


def group(root: Path, column: str, part: str = "part-00001") -> Path:
    (path,) = root.glob(f"columns/{column}/*/parts/{part}-*.zarr")
    return path


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("chunk_bytes", [2 << 20, 300])
def test_zarr_reads_the_rows_that_were_written(
    tmp_path: Path, dtype: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr_part, "CHUNK_BYTES", chunk_bytes)
    made = build(tmp_path, dtype=dtype)
    for column, names in FIELDS.items():
        opened = zarr.open_group(group(tmp_path, column), mode="r")
        samples = [made[column][f"k{i}"] for i in range(5, 10)]
        assert opened["sample_index"][:].tolist() == [0, 1, 2, 3, 4]
        assert np.diff(opened["row_offsets"][:]).tolist() == [len(rows) for rows in samples]
        for name in names:
            array = opened[name]
            values = [row[name] for rows in samples for row in rows]
            expected = np.concatenate(values) if "states" in name else np.stack(values)
            assert array.attrs["dtype"] == dtype
            assert array[:].dtype == expected.dtype
            assert np.array_equal(array[:], expected)
            if "states" in name:
                offsets = opened[f"{name}_offsets"][:]
                assert np.diff(offsets).tolist() == [len(value) for value in values]


def test_zarr_opens_a_part_without_any_sample(tmp_path: Path) -> None:
    build(tmp_path, lacking=frozenset({("image", f"k{i}") for i in range(5, 10)}))
    opened = zarr.open_group(group(tmp_path, "image"), mode="r")
    assert opened["image_embeds"][:].shape == (0, 12)


def test_zarr_finds_a_flipped_bit(tmp_path: Path) -> None:
    build(tmp_path)
    part = group(tmp_path, "image")
    shard = part / "image_embeds" / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"(?i)checksum|crc"):
        zarr.open_group(part, mode="r")["image_embeds"][:]


def test_zarr_makes_the_same_shard_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_part, "CHUNK_BYTES", 300)
    build(tmp_path)
    part = group(tmp_path, "text")
    ours = zarr.open_group(part, mode="r")["text_encoder_hidden_states"]
    copy = zarr.create_array(
        tmp_path / "copy.zarr",
        shape=ours.shape,
        dtype=ours.dtype,
        chunks=ours.chunks,
        shards=ours.shards,
        compressors=[zarr.codecs.Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
    copy[:] = ours[:]
    assert ours.shape[0] // ours.chunks[0] > 3
    theirs = (tmp_path / "copy.zarr" / "c" / "0" / "0").read_bytes()
    assert theirs == (part / "text_encoder_hidden_states" / "c" / "0" / "0").read_bytes()


@pytest.mark.parametrize("item_bytes", [1, 48, 200, 4096])
@pytest.mark.parametrize("items", [0, 1, 7, 64, 100])
def test_offsets_point_at_the_items_in_the_shard(
    items: int, item_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr_part, "CHUNK_BYTES", 1024)
    values = np.random.default_rng(0).integers(0, 256, (items, item_bytes), dtype=np.uint8)
    grid = ChunkGrid(items, item_bytes)
    shard = b"".join(zarr_part.shard(grid, values))
    offsets = grid.offset(np.arange(items))
    assert [shard[o : o + item_bytes] for o in offsets] == [value.tobytes() for value in values]
    assert grid.chunk_bytes <= max(1024, item_bytes)
