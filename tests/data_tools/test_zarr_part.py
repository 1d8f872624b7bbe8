"""A part is a plain zarr v3 group: zarr itself opens it, and finds a flipped bit."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_tools.cache import zarr_part
from data_tools.cache.zarr_part import ChunkGrid
from tests.data_tools import caches
from tests.data_tools.caches import BUCKETS, build, random_row

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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("chunk_bytes", [2 << 20, 30])
def test_zarr_reads_latents_of_several_bucket_shapes(
    tmp_path: Path, dtype: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three shapes in one part, two views a sample; with 30-byte chunks every row runs over several."""
    monkeypatch.setattr(zarr_part, "CHUNK_BYTES", chunk_bytes)
    made = build(tmp_path, dtype=dtype, buckets=BUCKETS, views=2)
    opened = zarr.open_group(group(tmp_path, "latents@24"), mode="r")
    rows = [row["latents"] for i in range(5, 10) for row in made["latents@24"][f"k{i}"]]
    assert {row.shape for row in rows} == {(4, h, w) for h, w in BUCKETS}
    assert opened["row_offsets"][:].tolist() == [0, 2, 4, 6, 8, 10]
    values, offsets, shapes = (opened[f"latents{name}"] for name in ("", "_offsets", "_shape"))
    assert values.attrs["dtype"] == dtype
    assert (values.dtype, values.shape) == (rows[0].dtype, (sum(row.size for row in rows),))
    assert (offsets.dtype, shapes.dtype) == (np.int64, np.int32)
    for number, row in enumerate(rows):
        found = values[offsets[number] : offsets[number + 1]].reshape(shapes[number])
        np.testing.assert_array_equal(found, row, strict=True)
    if chunk_bytes == 30:
        assert min(row.nbytes for row in rows) > 3 * values.chunks[0] * values.dtype.itemsize


def test_each_array_is_one_shard_of_whole_chunks_also_where_all_is_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarr_part, "CHUNK_BYTES", 300)
    monkeypatch.setattr(
        caches, "random_row", lambda *a: {n: np.zeros_like(v) for n, v in random_row(*a).items()}
    )
    build(tmp_path, buckets=BUCKETS)
    for column, names in FIELDS.items():
        root = group(tmp_path, column)
        arrays = sorted(path.parent for path in root.glob("*/zarr.json"))
        assert {*names, "sample_index", "row_offsets"} <= {path.name for path in arrays}
        for path in arrays:
            (shard,) = (p for p in path.rglob("*") if p.is_file() and p.name != "zarr.json")
            about = json.loads((path / "zarr.json").read_text())
            (codec,) = about["codecs"]
            inner, outer = codec["configuration"]["chunk_shape"], about["chunk_grid"]["configuration"]
            chunks, rest = divmod(outer["chunk_shape"][0], inner[0])
            assert codec["name"] == "sharding_indexed"
            assert (rest, inner[1:]) == (0, about["shape"][1:])
            assert 0 <= outer["chunk_shape"][0] - about["shape"][0] < chunks  # little padding
            for kind in ("codecs", "index_codecs"):
                assert [each["name"] for each in codec["configuration"][kind]] == ["bytes", "crc32c"]
            data = shard.read_bytes()
            index = np.frombuffer(data[-16 * chunks - 4 : -4], dtype="<u8").reshape(chunks, 2)
            assert index[:, 1].sum() == len(data) - 16 * chunks - 4  # none is left out, and nothing between
            assert np.array_equal(index[:, 0], np.arange(chunks) * index[0, 1])


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
    assert grid.num_chunks * grid.chunk_items - items < max(1, grid.num_chunks)


def test_the_layout_of_a_full_part_is_that_of_the_measurements() -> None:
    """Latents in chunks of 32, token rows in chunks of 512: as in the shards that were timed."""
    assert ChunkGrid(2048, 4 * 96 * 96 * 2).chunk_items == 32
    assert ChunkGrid(2048, 1280 * 2).chunk_items == 512
    assert ChunkGrid(2048 * 4 * 96 * 96, 2).chunk_bytes == 2 << 20
