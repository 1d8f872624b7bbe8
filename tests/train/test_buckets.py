"""The decoder on latents of several shapes: each batch has one."""

import shutil

import numpy as np
import pytest
import torch
import xxhash

from data_tools.cache.fields import Column, Field
from data_tools.cache.manifest import Cache
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import open_store
from data_tools.cache.writer import PartWriter
from data_tools.sources import Sample
from tests.train import runs
from train.batches import Slice, TrainingBatches
from train.reading import ordering

CPU = torch.device("cpu")
SIDES = ((8, 8), (8, 16), (16, 8))


@pytest.fixture(scope="module")
def bucketed(cache):
    """The cache with latents of three shapes, made of its own."""
    root = shutil.copytree(cache, cache.parent / "bucketed")
    reader = CacheReader(cache, ["latents@64"])
    old = reader.columns["latents@64"]
    hashes = reader.key_hashes().tolist()
    values = dict(zip(hashes, reader.gather("latents@64", reader.rows("latents@64")[0])["latents"]))
    reader.close()
    shutil.rmtree(root / "columns" / "latents@64")
    fields = (Field("latents", "float32", (4, "h", "w")),)
    made = Cache.open(open_store(root))
    column = Column(old.name, fields, {**old.identity, "tiled": True}, old.model, old.libraries)
    made.declare(column)
    for part in made.plan():
        writer = PartWriter(made.store, column, part.name)
        for index, entry in enumerate(made.table(part)):
            sample = Sample(**entry)
            latents = values.get(xxhash.xxh3_64_intdigest(sample.key.encode()))
            if latents is None:
                writer.reject(sample, "not in the cache")
                continue
            height, width = SIDES[index % 3]
            tiled = np.tile(latents, (1, height // 8, width // 8))
            writer.add(index, sample.key, [{"latents": tiled}])
        assert writer.commit()
    return root


@pytest.mark.parametrize("flags", [(), ("--preload", "device"), ("--order", "block")], ids=str)
def test_decoder_learns_from_several_shapes(flags, bucketed, tmp_path):
    flags = (*flags, "--validation-fraction", "0.4", "--max-train-steps", "12", "--learning-rate", "1e-3")
    runs.train("decoder", bucketed, tmp_path / "3", *flags, "--train-batch-size", "3")
    losses = list(runs.series(tmp_path / "3", "loss").values())
    assert len(losses) == 12
    # validated bucket by bucket, whatever the size of a batch
    two = ("--max-train-steps", "1", "--learning-rate", "0")
    for size in ("2", "16"):
        runs.train("decoder", bucketed, tmp_path / f"at-{size}", *flags, *two, "--train-batch-size", size)
    found, wanted = (runs.series(tmp_path / f"at-{size}", "validation_loss") for size in ("2", "16"))
    assert found == pytest.approx(wanted, rel=1e-5)
    _, reader, options = runs.prepared("decoder", bucketed, tmp_path / "3", *flags)
    assert reader.buckets("latents@64") == sorted((4, *sides) for sides in SIDES)
    share = Slice(0, 1, 3, 1)
    held = reader.held_out(0.4)
    batches = TrainingBatches(reader, held, share, 0, CPU, ordering=ordering(options, share))
    assert len({batches.read(step, 0)["latents"].shape for step in range(12)}) == 3
    reader.close()
