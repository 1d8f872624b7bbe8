"""Rows taken over from older parts are bit for bit what was committed there, or are not taken over."""

from pathlib import Path

import numpy as np
import pytest

from data_tools.cache import zarr_part
from data_tools.cache.carry import carried
from data_tools.cache.store import LocalStore
from data_tools.cache.tar_part import TarPart
from data_tools.cache.zarr_part import ZarrPart
from data_tools.sources import Sample
from tests.data_tools.caches import BUCKETS, COLUMNS, build, same
from tests.data_tools.origins import opened
from tests.data_tools.test_damage import flip, payload


def replacing(numbers: dict[int, int], part_size: int = 5) -> dict[int, Sample]:
    """New position → a sample that takes over all of sample k<number>."""
    samples = {}
    for position, number in numbers.items():
        was = f"part-{number // part_size:05d}:{number % part_size}"
        samples[position] = Sample(f"k{number}", (), "", 0, 0, picture_was=was, captions_was=was)
    return samples


CHOSEN = {0: 13, 1: 2, 5: 0, 6: 7, 7: 3}


@pytest.mark.parametrize("apart", [0, 1 << 20])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("container", [ZarrPart(), TarPart(0), TarPart(1)])
@pytest.mark.parametrize("buckets", [(), BUCKETS])
def test_rows_are_those_of_the_old_parts(
    tmp_path: Path,
    container: ZarrPart | TarPart,
    dtype: str,
    buckets: tuple,
    apart: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a row runs over the end of a chunk, and where neighbours are read together."""
    monkeypatch.setattr(zarr_part, "CHUNK_BYTES", 100)
    monkeypatch.setattr(LocalStore, "coalesce_bytes", apart)
    made = build(tmp_path, dtype=dtype, container=container, buckets=buckets, views=2)
    cache = opened(tmp_path)
    for name in COLUMNS:
        rows = carried(cache, cache.column(name), replacing(CHOSEN))
        assert rows.keys() == CHOSEN.keys()
        found = {f"k{CHOSEN[position]}": value for position, value in rows.items()}
        assert same({name: found}, {name: {f"k{n}": made[name][f"k{n}"] for n in CHOSEN.values()}})


def test_what_was_rejected_never_committed_or_is_damaged_is_left_to_the_encoder(tmp_path: Path) -> None:
    build(tmp_path, lacking=frozenset({("image", "k2")}), unfinished=frozenset({("image", "part-00002")}))
    cache = opened(tmp_path)
    column = cache.column("image")
    assert carried(cache, column, replacing(CHOSEN)).keys() == {5, 6, 7}
    flip(payload(tmp_path, "image"), 100)  # in the row of k7
    assert carried(cache, column, replacing({6: 7, 7: 3})).keys() == {7}
    (index,) = tmp_path.glob("columns/image/*/parts/part-00000-*.npz")
    index.unlink()
    assert not carried(cache, column, replacing({7: 3}))


def test_a_sample_that_replaces_none_takes_nothing_over(tmp_path: Path) -> None:
    build(tmp_path)
    cache = opened(tmp_path)
    assert carried(cache, cache.column("text"), {0: Sample("k0", (), "", 0, 0)}) == {}
    only_picture = Sample("k0", (), "", 0, 0, picture_was="part-00000:0")
    assert carried(cache, cache.column("text"), {0: only_picture}) == {}
    assert np.array_equal([*carried(cache, cache.column("image"), {4: only_picture})], [4])
