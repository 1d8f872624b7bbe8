"""What was read once and kept gives the very batches that reading each time does."""

import numpy as np
import pytest
import torch

from data_tools.cache.mixture import open_caches
from data_tools.cache.places import CachePlace
from data_tools.errors import DataFault, UserError
from tests.data_tools.caches import BUCKETS, COLUMNS, build
from tests.train import runs
from train import preload
from train.batches import Slice, TrainingBatches, collate
from train.preload import Preloaded, check_memory
from train.sampling import Ordering

CPU = torch.device("cpu")
NONE = np.zeros(0, dtype=np.int64)
KINDS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "views": {"dtype": "float16", "views": 2},
    "buckets": {"dtype": "bfloat16", "buckets": BUCKETS, "views": 2},
    "gaps": {"lacking": frozenset({("image", "k3"), ("text", "k8"), ("latents@24", "k9")})},
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    """Two caches of one kind."""
    folder = tmp_path_factory.mktemp("preload")
    for name, count in zip("ab", (23, 14)):
        build(folder / name, count=count, **KINDS[request.param])
    return folder


@pytest.fixture(params=[(None,), (None, None), (None, 0.5)], ids=["one", "union", "weighted"])
def reader(request, folder):
    places = [CachePlace(str(folder / name), weight) for name, weight in zip("ab", request.param)]
    reader = open_caches(places, COLUMNS)
    yield reader
    reader.close()


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def quiet(reader, monkeypatch, slice_bytes=1500):
    """Preloaded in many slices."""
    monkeypatch.setattr(preload, "SLICE_BYTES", slice_bytes)
    return Preloaded(reader, CPU, quiet=True)


def test_batches_are_bit_equal_to_those_that_are_read(reader, monkeypatch):
    share = Slice(1, 2, 2, 2)
    read, kept = (
        TrainingBatches(reader, reader.held_out(0.1), share, 3, CPU, ordering=Ordering(group=1))
        for _ in range(2)
    )
    kept.source = quiet(reader, monkeypatch)
    monkeypatch.setattr(type(reader), "gather", None)  # nothing is read any more
    ahead = list(kept.iterate(0, 30))
    monkeypatch.undo()
    for (found, positions), (wanted, numbers) in zip(ahead, read.iterate(0, 30), strict=True):
        assert same(found, wanted)
        assert positions.tolist() == numbers.tolist()


def test_every_caption_and_view_is_kept(reader, monkeypatch):
    kept = quiet(reader, monkeypatch)
    for column in reader.columns:
        first, count = reader.rows(column)
        rows = np.repeat(first, count) + np.concatenate([np.arange(n) for n in count])
        for row in np.random.default_rng(0).permutation(rows):
            number = {column: np.array([row])}
            assert same(kept.collate(number), collate(reader, number))
    one_token = {"text": np.array([reader.rows("text")[0][0]])}
    assert kept.collate(one_token)["text_encoder_hidden_states"].shape[1] == int(
        reader.lengths("text", one_token["text"])[0]
    )


def test_row_that_the_reader_does_not_have_is_no_other_row(reader, monkeypatch):
    kept = quiet(reader, monkeypatch)
    with pytest.raises((AssertionError, IndexError)):
        kept.collate({"image": reader.rows("image")[0][-1:] + 1000})


def test_too_little_memory_is_said_with_both_numbers(reader, monkeypatch):
    needed = reader.payload_bytes(COLUMNS)
    monkeypatch.setattr(preload, "_free_ram", lambda: needed - 1)
    with pytest.raises(UserError) as refused:
        check_memory(reader, CPU)
    assert str(refused.value) == (
        f"--preload: image, text, latents@24 of {reader.url} take {needed:,} bytes, "
        f"but {needed - 1:,} are free in RAM; use --preload none"
    )
    monkeypatch.setattr(preload, "_free_ram", lambda: needed)
    check_memory(reader, CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"bytes for each of 2 processes, but"):
        check_memory(reader, CPU)


def test_free_memory_of_this_machine_is_known():
    free = preload._free_ram()
    assert free is not None
    assert 1 << 20 < free < 1 << 50


def test_flipped_byte_is_found_while_loading(tmp_path):
    build(tmp_path / "a")
    files = [path for path in (tmp_path / "a" / "columns" / "text").rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    reader = open_caches([CachePlace(str(tmp_path / "a"))], COLUMNS)
    with pytest.raises(DataFault, match="crc32c of row"):
        Preloaded(reader, CPU, quiet=True)
    reader.close()


@pytest.mark.parametrize("kind", runs.KINDS)
@pytest.mark.parametrize("where", ["ram", "device"])
def test_preloaded_run_is_the_run(where, kind, cache, finished, tmp_path):
    output = runs.train(kind, cache, tmp_path / "out", *runs.STANDARD, "--preload", where)
    assert runs.metrics(output) == runs.metrics(finished[kind])
    name = runs.TRAINED[kind]
    assert runs.same_tensors(runs.weights(output / name), runs.weights(finished[kind] / name))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("where", ["disk", "cpu", "cuda"])
def test_batches_on_a_gpu_are_those_of_the_cpu(where, reader):
    device = torch.device("cuda", torch.cuda.current_device())
    there = TrainingBatches(reader, NONE, Slice(0, 1, 4, 1), 3, device)
    if where != "disk":
        there.source = Preloaded(reader, device if where == "cuda" else CPU, quiet=True)
    if where != "cuda":
        assert all(value.is_pinned() for value in there.read(0, 0).values())
    wanted = TrainingBatches(reader, NONE, Slice(0, 1, 4, 1), 3, CPU)
    for (batch, _), (expected, _) in zip(there.iterate(0, 20), wanted.iterate(0, 20), strict=True):
        assert all(value.device == device for value in batch.values())
        assert same({name: value.cpu() for name, value in batch.items()}, expected)
