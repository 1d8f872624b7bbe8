"""`--paranoid`: what changes on the disk after it was first read does not go unseen."""

import shutil

import numpy as np
import pytest
import torch

from data_tools.errors import DataFault
from tests.train import runs
from train.batches import Slice, TrainingBatches
from train.reading import ordering

CPU = torch.device("cpu")


@pytest.mark.parametrize("paranoid", [False, True])
def test_byte_that_flips_after_the_first_epoch_is_seen_by_the_paranoid(paranoid, cache, tmp_path):
    copied = shutil.copytree(cache, cache.parent / f"flipped-{tmp_path.name}")
    flags = ["--paranoid"] if paranoid else []
    _, reader, options = runs.prepared("decoder", copied, tmp_path / "out", *flags)
    share = Slice(0, 1, reader.num_samples, 1)
    none = np.zeros(0, dtype=np.int64)
    batches = TrainingBatches(reader, none, share, 0, CPU, ordering=ordering(options, share))
    batches.read(0, 0)  # everything
    files = [path for path in (copied / "columns" / "latents@64").glob("*/parts/**/*") if path.is_file()]
    path = max((path for path in files if path.suffix != ".npz"), key=lambda path: path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    if paranoid:
        with pytest.raises(DataFault, match="crc32c of row"):
            batches.read(1, 0)
    else:
        assert len(batches.read(1, 0)["latents"]) == reader.num_samples
    reader.close()
