"""What was written is what is read, wherever rows lie and however columns join."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import xxhash

from data_tools.cache import store, zarr_part
from data_tools.cache.reader import CacheReader
from data_tools.cache.verify import load_index
from data_tools.errors import UserError
from tests.data_tools.caches import COLUMNS, D, build, read, same


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("chunk_bytes", [2 << 20, 300])
def test_rows_come_back_bit_equal(
    tmp_path: Path, dtype: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 300-byte chunks most captions run over several chunk borders."""
    monkeypatch.setattr(zarr_part, "CHUNK_BYTES", chunk_bytes)
    made = build(tmp_path, dtype=dtype)
    assert same(read(tmp_path), made)


def test_small_chunks_do_make_captions_straddle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_part, "CHUNK_BYTES", 300)
    build(tmp_path)
    reader = CacheReader(tmp_path, ["text"])
    about = reader.columns["text"]
    commit = reader.cache.commit(about, "part-00000")
    assert commit is not None
    extents = load_index(reader.cache.store, commit).fields["text_encoder_hidden_states"]
    period = extents.chunk_bytes + extents.gap_bytes
    ends = extents.offset % period + extents.shape.prod(axis=1) * 4
    assert (ends > 2 * extents.chunk_bytes).any()


def test_one_batch_mixes_parts_in_any_order_with_repeats(tmp_path: Path) -> None:
    made = build(tmp_path)
    reader = CacheReader(tmp_path, ["image"])
    samples = np.array([13, 0, 5, 5, 9, 4])
    batch = reader.gather("image", reader.rows("image", samples)[0])
    expected = [made["image"][f"k{i}"][0]["image_embeds"] for i in samples]
    assert np.array_equal(batch["image_embeds"], expected)


def test_ragged_rows_are_padded_with_zeros_to_the_longest_of_the_batch(tmp_path: Path) -> None:
    made = build(tmp_path)
    reader = CacheReader(tmp_path, ["text"])
    batch = reader.gather("text", reader.rows("text")[0])
    lengths = [len(made["text"][f"k{i}"][0]["text_encoder_hidden_states"]) for i in range(14)]
    assert batch["n_tokens"].tolist() == lengths
    assert batch["n_tokens"].dtype == np.int64
    assert batch["text_encoder_hidden_states"].shape == (14, max(lengths), D)
    for states, length in zip(batch["text_encoder_hidden_states"], lengths):
        assert not states[length:].any()


def test_every_caption_of_a_sample_is_a_row_of_it(tmp_path: Path) -> None:
    build(tmp_path)
    reader = CacheReader(tmp_path, ["text"])
    assert reader.rows("text")[1].tolist() == [1 + i % 3 for i in range(14)]


def test_an_empty_batch_is_empty(tmp_path: Path) -> None:
    build(tmp_path)
    batch = CacheReader(tmp_path, ["text"]).gather("text", np.zeros(0, dtype=np.int64))
    assert batch["prompt_embeds"].shape == (0, D)
    assert batch["n_tokens"].shape == (0,)


def test_joined_columns_show_the_samples_that_all_of_them_have(tmp_path: Path) -> None:
    lacking = frozenset({("image", "k3"), ("latents@24", "k3"), ("text", "k7"), ("text", "k13")})
    made = build(tmp_path, lacking=lacking)
    common = {f"k{i}" for i in range(14)} - {"k3", "k7", "k13"} | {""}
    expected = {c: {k: v for k, v in keys.items() if k in common} for c, keys in made.items()}
    assert same(read(tmp_path), expected)
    assert CacheReader(tmp_path, ["image"]).num_samples == 13
    assert CacheReader(tmp_path, ["text"]).num_samples == 12
    assert CacheReader(tmp_path, list(COLUMNS)).num_samples == 11


def test_a_part_whose_samples_were_all_rejected_holds_nothing_and_is_finished(tmp_path: Path) -> None:
    lacking = frozenset({("image", f"k{i}") for i in range(5, 10)})
    made = build(tmp_path, lacking=lacking)
    assert same(read(tmp_path, ("image",)), {"image": made["image"]})
    assert CacheReader(tmp_path, ["image", "text"]).num_samples == 9


def test_an_unfinished_cache_is_refused_unless_asked_for(tmp_path: Path) -> None:
    made = build(tmp_path, unfinished=frozenset({("latents@24", "part-00001")}))
    with pytest.raises(UserError, match=r"unfinished: column latents@24 lacks part-00001; run precompute"):
        read(tmp_path)
    there = {f"k{i}" for i in (*range(5), *range(10, 14))} | {""}
    expected = {c: {k: v for k, v in keys.items() if k in there} for c, keys in made.items()}
    assert same(read(tmp_path, allow_partial=True), expected)


def test_a_missing_column_is_one_line_with_the_columns_there_are(tmp_path: Path) -> None:
    build(tmp_path)
    with pytest.raises(UserError, match=r"^--cache: .* no column 'latents@768' \(it has: image, latents@24"):
        CacheReader(tmp_path, ["latents@768"])


def test_a_moved_cache_reads_the_same(tmp_path: Path) -> None:
    made = build(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there" / "deep")
    assert same(read(tmp_path / "there" / "deep"), made)


def test_few_open_files_are_enough_for_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "OPEN_FILES", 2)
    made = build(tmp_path, count=20, part_size=2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = CacheReader(tmp_path, ["image"])
    for _ in range(2):
        batch = reader.gather("image", reader.rows("image")[0])
        assert np.array_equal(
            batch["image_embeds"], [made["image"][f"k{i}"][0]["image_embeds"] for i in range(20)]
        )
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 5


def test_key_hashes_do_not_depend_on_the_columns_read(tmp_path: Path) -> None:
    build(tmp_path)
    hashes = [CacheReader(tmp_path, [name]).key_hashes().tolist() for name in COLUMNS]
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(set(hashes[0])) == 14


def test_keys_are_those_whose_hashes_the_index_holds(tmp_path: Path) -> None:
    build(tmp_path, lacking=frozenset({("text", "k3"), ("image", "k7")}))
    reader = CacheReader(tmp_path, ["image", "text"])
    samples = np.array([11, 0, 4, 11, 6])
    keys = reader.keys(samples)
    hashes = [xxhash.xxh3_64_intdigest(key.encode()) for key in keys]
    assert hashes == reader.key_hashes(samples).tolist()
    assert not {"k3", "k7"} & set(reader.keys(np.arange(reader.num_samples)))
