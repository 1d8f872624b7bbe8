"""One cache of two views, several captions and three bucket shapes goes through every command unchanged."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_tools.cache import check, convert, export, merge, zarr_part
from data_tools.cache.cast import cast
from data_tools.cache.convert import ConvertOptions
from data_tools.cache.export import ExportOptions
from data_tools.cache.fields import Field, Row
from data_tools.cache.merge import MergeOptions
from data_tools.cache.payload import PartPayload
from data_tools.cache.reader import CacheReader
from data_tools.cache.rows import Container
from data_tools.cache.store import open_store
from data_tools.cache.tar_part import TarPart
from data_tools.cache.writer import PartWriter
from data_tools.cache.zarr_part import ZarrPart
from data_tools.errors import DataFault
from tests.data_tools.caches import BUCKETS, Made, build, read, same
from tests.data_tools.origins import build_of, float32, opened, stored, sums
from tests.data_tools.test_damage import flip

LACKING = frozenset({("image", "k3"), ("text", "k8"), ("latents@24", "k3")})
CONTAINERS: dict[str, Container] = {"zarr": ZarrPart(), "webdataset": TarPart(4)}


@pytest.fixture(scope="module", params=list(CONTAINERS))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    """14 samples in parts of 5, three shapes in each; rows of the zarr parts run over chunks."""
    folder = tmp_path_factory.mktemp("views") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr_part, "CHUNK_BYTES", 300)
        container = CONTAINERS[request.param]
        return folder, build(folder, lacking=LACKING, buckets=BUCKETS, views=2, container=container)


def converted(source: Path, dest: Path, **options: object) -> None:
    convert.convert(opened(source), open_store(dest), ConvertOptions(**options))


def faults(root: Path, *, full: bool = True) -> list[str]:
    return [str(fault) for fault in check.verify(opened(root), full=full).faults]


def shapes(made: Made) -> set[tuple[int, ...]]:
    return {row["latents"].shape for rows in made["latents@24"].values() for row in rows}


def test_all_is_there_in_every_part(built: tuple[Path, Made]) -> None:
    root, made = built
    assert same(stored(root), made)
    assert shapes(made) == {(4, h, w) for h, w in BUCKETS}
    assert {len(rows) for key, rows in made["image"].items() if key} == {2}
    assert {len(rows) for rows in made["text"].values()} == {1, 2, 3}
    assert faults(root) == []


def test_a_reader_finds_both_views_and_every_shape(built: tuple[Path, Made]) -> None:
    root, made = built
    shared = {"k3", "k8"}
    wanted = {column: {k: v for k, v in rows.items() if k not in shared} for column, rows in made.items()}
    assert same(read(root), wanted)


@pytest.mark.parametrize("part_size", [None, 1, 3, 20])
@pytest.mark.parametrize(("format", "tar_block"), [("zarr", 0), ("webdataset", 1), ("webdataset", 32)])
def test_converted_rows_keep_bytes_shapes_and_order(
    built: tuple[Path, Made], tmp_path: Path, format: str, tar_block: int, part_size: int | None
) -> None:
    converted(built[0], tmp_path, format=format, tar_block=tar_block, part_size=part_size)
    assert same(stored(tmp_path), built[1])
    assert sums(tmp_path) == sums(built[0])
    assert faults(tmp_path) == []
    column = opened(tmp_path).column("latents@24")
    assert column is not None
    assert column.fields[0].shape == (4, "h", "w")


def test_a_copy_that_differs_from_its_source_is_noticed(
    built: tuple[Path, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_tools.cache.copy.cast", lambda value, *_: -value)
    with pytest.raises(DataFault, match=r"image, null: image_embeds: rows differ from those of the source"):
        converted(built[0], tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_another_dtype_rounds_every_value_once(
    built: tuple[Path, Made], tmp_path: Path, format: str, dtype: str
) -> None:
    converted(built[0], tmp_path, format=format, dtype=dtype)

    def rounded(row: Row) -> Row:
        return {name: cast(value, "float32", dtype) for name, value in row.items()}

    wanted = {c: {k: [*map(rounded, rows)] for k, rows in v.items()} for c, v in built[1].items()}
    assert same(stored(tmp_path), wanted)
    assert faults(tmp_path) == []


def test_merged_caches_keep_each_sample_with_all_its_rows(tmp_path: Path) -> None:
    first = build_of(tmp_path / "a", range(9), part_size=4, buckets=BUCKETS, views=2)
    second = build_of(tmp_path / "b", range(6, 14), buckets=BUCKETS[::-1], views=2, container=TarPart(4))
    sources = [opened(tmp_path / "a"), opened(tmp_path / "b")]
    merge.merge(sources, open_store(tmp_path / "d"), MergeOptions(part_size=6))
    assert same(stored(tmp_path / "d"), {column: {**second[column], **first[column]} for column in first})
    assert faults(tmp_path / "d") == []


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_exported_samples_have_their_own_shape_and_their_further_views_numbered(
    built: tuple[Path, Made], tmp_path: Path, dtype: str | None
) -> None:
    wds = pytest.importorskip("webdataset")
    root, made = built
    if dtype:
        converted(root, tmp_path / "half", dtype=dtype)
        root, made = tmp_path / "half", stored(tmp_path / "half")
    export.export(opened(root), open_store(tmp_path / "d"), ExportOptions(samples_per_tar=5))
    urls = [str(path) for path in sorted((tmp_path / "d").glob("*.tar"))]
    found = {s["json"]["key"]: s for s in wds.WebDataset(urls, shardshuffle=False).decode()}
    assert found.keys() == {f"k{i}" for i in range(14)} - {"k3", "k8"}
    for key, sample in found.items():
        for column, name in (("image", "image_embeds"), ("latents@24", "latents")):
            for view, row in enumerate(made[column][key]):
                value = sample[f"{name}.{view}.npy" if view else f"{name}.npy"]
                np.testing.assert_array_equal(value, float32(row[name], dtype or "float32"), strict=True)
            assert f"{name}.2.npy" not in sample
        offsets = sample["text_encoder_hidden_states_offsets.npy"]
        assert len(sample["prompt_embeds.npy"]) == len(sample["json"]["captions"]) == len(offsets) - 1
        for (begin, end), row in zip(pairwise(offsets), made["text"][key], strict=True):
            tokens = sample["text_encoder_hidden_states.npy"][begin:end]
            wanted = float32(row["text_encoder_hidden_states"], dtype or "float32")
            np.testing.assert_array_equal(tokens, wanted, strict=True)


def test_a_flipped_bit_in_any_row_of_any_shape_is_found_and_its_row_named(
    built: tuple[Path, Made], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(built[0], tmp_path / "cache"))
    cache = opened(root)
    column = cache.column("latents@24")
    assert column is not None
    commit = cache.commit(column, "part-00001")
    assert commit is not None
    extents = PartPayload.open(cache, column, commit).index.fields["latents"]
    path = root / extents.object
    whole = path.read_bytes()
    assert len(extents.offset) == 10
    first = int(CacheReader(root, ["latents@24"]).rows("latents@24")[0][4])  # of k5, since k3 is lacking
    for row, offset in enumerate(extents.offset.tolist()):
        flip(path, offset)
        assert faults(root, full=False) == []
        assert faults(root)[1:] == [f"latents@24, part-00001: latents: crc32c differs in row {row}"]
        with pytest.raises(DataFault, match=rf"latents: crc32c of row {row} differs; .*precompute --repair"):
            PartPayload.open(cache, column, commit).rows(row // 2)
        with pytest.raises(DataFault, match=rf"latents: crc32c of row {row} differs; .*precompute --repair"):
            CacheReader(root, ["latents@24"]).gather("latents@24", np.array([first + row]))
        path.write_bytes(whole)


def test_values_that_are_not_finite_are_found_in_rows_of_any_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Field, "check", lambda *_: None)  # a writer that does not look
    monkeypatch.setattr(zarr_part, "CHUNK_BYTES", 64)
    part = ("latents@24", "part-00000")
    build(tmp_path, dtype="bfloat16", buckets=BUCKETS, views=2, unfinished=frozenset({part}))
    cache = opened(tmp_path)
    column = cache.column("latents@24")
    assert column is not None
    writer = PartWriter(cache.store, column, "part-00000")
    for number, entry in enumerate(cache.table(cache.plan()[0])):
        views = [np.ones((4, *BUCKETS[number % 3]), dtype="<u2") for _ in range(2)]
        if number == 3:
            views[1][3, -1, -1] = 0x7F80  # infinity, the last value of the second view
        writer.add(number, entry["key"], [{"latents": value} for value in views])
    assert writer.commit()
    assert faults(tmp_path) == ["latents@24, part-00000: latents: NaN or infinity in row 7"]


def test_a_lost_table_of_shapes_is_a_missing_object(tmp_path: Path) -> None:
    """Our reader does without it, plain zarr does not."""
    build(tmp_path, count=3, buckets=BUCKETS)
    (shard,) = tmp_path.glob("columns/latents@24/*/parts/part-00000-*.zarr/latents_shape/c/0/0")
    shard.unlink()
    (fault,) = faults(tmp_path, full=False)
    assert fault.endswith("latents_shape/c/0/0 is missing, wanted 60 bytes")
