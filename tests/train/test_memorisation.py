"""`train-prior` learns sixteen captions by heart: sampled from them, their own embeddings come out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import KandinskyV22PriorPipeline
from torch import Tensor
from torch.nn import functional as F

from data_tools.cache.reader import CacheReader
from tests.precompute.command import precompute
from tests.precompute.pictures import noise
from tests.train import runs
from tests.train.test_equivalence import table

CAPTIONS = [
    f"a {colour} {thing}"
    for colour in ("red", "green", "blue", "black")
    for thing in ("apple", "house", "cat", "kite")
]
STEPS = 200
FLAGS = (
    *("--max-train-steps", str(STEPS), "--train-batch-size", "16", "--noise-draws", "2"),
    *("--learning-rate", "1e-3", "--lr-scheduler", "cosine", "--lr-warmup-steps", "10"),
    *("--report-to", "none", "--checkpointing-steps", "1000"),
)


@pytest.fixture(scope="module")
def sixteen(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of sixteen pictures, each with a caption of its own."""
    folder = tmp_path_factory.mktemp("sixteen")
    for number, caption in enumerate(CAPTIONS):
        noise(number, (112, 112)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(caption)
    cache = tmp_path_factory.mktemp("caches") / "sixteen"
    precompute(folder, cache, pocket, "--columns", "image,text")
    return cache


def truths(cache: Path) -> tuple[list[str], Tensor]:
    """The captions, and the image embedding of each, (16, D)."""
    reader, entries = CacheReader(cache, ["image"]), table(cache)
    rows = reader.rows("image", np.arange(reader.num_samples))[0]
    embeds = torch.from_numpy(reader.gather("image", rows)["image_embeds"].astype(np.float32))
    captions = [entries[key]["captions"][0] for key in reader.key_hashes().tolist()]
    reader.close()
    return captions, embeds


def cosines(folder: Path, captions: list[str], truth: Tensor) -> Tensor:
    """Of what the stock pipeline samples without guidance (rows) and the truths (columns), (16, 16)."""
    pipeline = KandinskyV22PriorPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    sampled = pipeline(captions, guidance_scale=1.0, generator=generator).image_embeds  # (16, D)
    return F.cosine_similarity(sampled[:, None], truth[None], dim=-1)


def test_sampled_embeddings_of_sixteen_samples_are_theirs(sixteen, pocket, tmp_path, record_property):
    captions, truth = truths(sixteen)
    assert sorted(captions) == sorted(CAPTIONS)
    output = runs.train("prior", sixteen, tmp_path / "out", *FLAGS)
    before, after = (cosines(folder, captions, truth) for folder in (pocket / "prior", output))
    centre = F.cosine_similarity(truth, truth.mean(dim=0, keepdim=True))
    for name, values in (("before", before.diagonal()), ("after", after.diagonal()), ("mean", centre)):
        record_property(name, f"{values.mean():.4f}, at least {values.min():.4f}")
        print(f"{name}: {values.mean():.4f}, at least {values.min():.4f}")
    # measured 0.87 before, and 0.94 for the one embedding that is nearest to all of them
    assert before.diagonal().mean() < 0.9
    assert centre.mean() < 0.945
    assert after.diagonal().min() > 0.95
    assert after.argmax(dim=1).tolist() == list(range(len(captions)))
