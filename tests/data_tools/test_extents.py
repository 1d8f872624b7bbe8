"""The extent index finds every row of every field, in both containers, whatever the shapes and chunks."""

from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from data_tools.cache import zarr_part
from data_tools.cache.extents import FieldExtents, PartIndex
from data_tools.cache.fields import DTYPES, Column, Field, Row
from data_tools.cache.manifest import Cache, Commit
from data_tools.cache.payload import PartPayload
from data_tools.cache.rows import Container
from data_tools.cache.store import LocalStore
from data_tools.cache.tar_part import TarPart
from data_tools.cache.writer import PartWriter
from data_tools.cache.zarr_part import ZarrPart

SHAPES: list[tuple[int | str, ...]] = [
    (5,),
    (2, 3),
    ("n",),
    ("n", 3),
    ("n", 2, 2),
    (4, "h", "w"),
    (2, "h", 3),
    ("n", 2, "w", 3),
]
CHUNKS = [1, 7, 50, 333, 5_000, 2_500_000]
"So small that a row runs over many chunks, up to a part in one."


def random_part(rng: np.random.Generator) -> tuple[Column, list[list[Row]]]:
    """A column of one to three fields, and the rows of some samples; a first dimension may be 0."""
    chosen = rng.permutation(len(SHAPES))[: rng.integers(1, 4)].tolist()
    dtypes = rng.choice(list(DTYPES), len(chosen)).tolist()
    fields = tuple(Field(f"field{i}", dtype, SHAPES[i]) for i, dtype in zip(chosen, dtypes))

    def row() -> Row:
        found = {}
        for field in fields:
            shape = [
                int(rng.integers(place > 0, 9)) if isinstance(dim, str) else dim
                for place, dim in enumerate(field.shape)
            ]
            bits = rng.standard_normal(shape).astype(np.float32)
            value = bits.view(np.uint32) >> 16 if field.dtype == "bfloat16" else bits
            found[field.name] = value.astype(field.storage)
        return found

    samples = [[row() for _ in range(rng.integers(1, 4))] for _ in range(rng.integers(0, 12))]
    return Column("some", fields, {"seed": 0}, {}, {}), samples


def written(root: Path, column: Column, samples: list[list[Row]], container: Container) -> Commit:
    store = LocalStore(root)
    writer = PartWriter(store, column, "part-00000", container=container)
    for number, rows in enumerate(samples):
        writer.add(number, f"k{number}", rows)
    assert writer.commit()
    commit = Cache(store).commit(column, "part-00000")
    assert commit is not None
    return commit


def bytes_of(data: bytes, extents: FieldExtents, row: int, size: int) -> bytes:
    """The bytes of a row, one by one, by what `extents` says of gaps."""
    place, found = int(extents.offset[row]), bytearray()
    while len(found) < size:
        if extents.chunk_bytes and place % (extents.chunk_bytes + extents.gap_bytes) >= extents.chunk_bytes:
            place += 1
            continue
        found.append(data[place])
        place += 1
    return bytes(found)


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_every_row_is_where_the_index_says_and_is_cut_out_as_it_was_written(
    tmp_path: Path, format: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(zarr_part, "CHUNK_BYTES", CHUNKS[seed % len(CHUNKS)])
    column, samples = random_part(rng)
    container: Container = ZarrPart() if format == "zarr" else TarPart(int(rng.choice([0, 1, 3, 32])))
    commit = written(tmp_path, column, samples, container)
    index = PartIndex.load((tmp_path / commit.index).read_bytes())
    rows = [row for some in samples for row in some]
    assert np.diff(index.row_offsets).tolist() == [len(some) for some in samples]
    for field in column.fields:
        extents, values = index.fields[field.name], [row[field.name] for row in rows]
        assert extents.shape.tolist() == [list(value.shape) for value in values]
        if not any(value.size for value in values):
            continue
        data = (tmp_path / extents.object).read_bytes()
        for number, value in enumerate(values):
            assert bytes_of(data, extents, number, value.nbytes) == value.tobytes()
            assert google_crc32c.value(value.tobytes()) == extents.crc32c[number]
    payload = PartPayload.open(Cache(LocalStore(tmp_path)), column, commit)
    for number, rows in enumerate(samples):
        for found, row in zip(payload.rows(number), rows, strict=True):
            for name, value in row.items():
                np.testing.assert_array_equal(found[name], value, strict=True)


def test_latents_of_the_real_size_cross_chunks_now_and_then(tmp_path: Path) -> None:
    """Buckets of about 73 KB in chunks of 2 MiB: few rows are in two pieces, few bytes are padding."""
    sides = [(96, 96), (80, 112), (112, 80), (72, 128)]
    field = Field("latents", "float16", (4, "h", "w"))
    rng = np.random.default_rng(0)
    rows = [{"latents": rng.random((4, *sides[i % 4]), dtype=np.float32).astype("<f2")} for i in range(100)]
    column = Column("latents@768", (field,), {}, {}, {})
    commit = written(tmp_path, column, [[row] for row in rows], ZarrPart())
    extents = PartIndex.load((tmp_path / commit.index).read_bytes()).fields["latents"]
    sizes = np.array([row["latents"].nbytes for row in rows])
    begin = extents.offset % (extents.chunk_bytes + extents.gap_bytes)
    crossing = int((begin + sizes > extents.chunk_bytes).sum())
    chunks = -(-int(sizes.sum()) // extents.chunk_bytes)
    assert 1 << 20 < extents.chunk_bytes <= 2 << 20
    assert 1 <= crossing <= chunks - 1 < len(rows) / 10
    overhead = (tmp_path / extents.object).stat().st_size - sizes.sum()
    assert overhead < 200
    payload = PartPayload.open(Cache(LocalStore(tmp_path)), column, commit)
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(payload.rows(number)[0]["latents"], row["latents"], strict=True)


def test_what_stands_for_a_named_dimension() -> None:
    kinds = {
        shape: (field.ragged, field.bucketed, field.varies, field.item_shape, field.item_bytes)
        for shape in [(5,), ("n", 3), (4, "h", "w"), (2, "h", 3)]
        for field in [Field("field", "float16", shape)]
    }
    assert kinds == {
        (5,): (None, False, False, (5,), 10),
        ("n", 3): ("n", False, True, (3,), 6),
        (4, "h", "w"): (None, True, True, (), 2),
        (2, "h", 3): (None, True, True, (3,), 6),
    }
    assert Field("field", "float16", (5,)).items((5,)) == 1
    assert Field("field", "float16", ("n", 3)).items((7, 3)) == 7
    assert Field("field", "float16", (4, "h", "w")).items((4, 2, 3)) == 24
    assert Field("field", "float16", (2, "h", 3)).items((2, 7, 3)) == 14


@pytest.mark.parametrize("shape", [(4, 3), (5, 2, 3), (4, 2, 3, 1)])
def test_a_bucketed_row_of_another_rank_or_depth_is_refused(shape: tuple[int, ...]) -> None:
    field = Field("latents", "float32", (4, "h", "w"))
    field.check(np.zeros((4, 2, 3), dtype=np.float32))
    with pytest.raises(ValueError, match=r"^latents: found float32.*wanted float32\(4, 'h', 'w'\)"):
        field.check(np.zeros(shape, dtype=np.float32))
