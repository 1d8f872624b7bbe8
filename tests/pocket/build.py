"""Save the pocket model as two repositories laid out like kandinsky-2-2-prior and kandinsky-2-2-decoder."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline
from transformers import CLIPVisionModelWithProjection

from tests.pocket import models
from tests.pocket.captions import CAPTIONS
from tests.pocket.tokenizer import pocket_tokenizer, write_tokenizer_files

STAMP = "pocket.json"
REPOSITORIES = ("prior", "decoder")
FORMAT = 1  # raise when the models change, so that a folder of the old ones is not taken for the new


def build_pocket(folder: Path, captions: Sequence[str] = CAPTIONS, seed: int = 0) -> None:
    """Write `folder`/prior and `folder`/decoder, or return at once where the same ones are already there.

    Raises ValueError where `folder` holds a pocket of another seed, other captions or another version.
    """
    digest = hashlib.sha256(json.dumps(list(captions)).encode()).hexdigest()
    wanted = {"format": FORMAT, "seed": seed, "captions": digest[:16]}
    stamp = folder / STAMP
    if stamp.exists():
        found = json.loads(stamp.read_text(encoding="utf-8"))
        if found != wanted:
            raise ValueError(f"{folder}: holds the pocket {found}, wanted {wanted}: choose another folder")
        if all((folder / name / "model_index.json").exists() for name in REPOSITORIES):
            return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as name:
        building = Path(name)
        _save_prior(building / "prior", captions, seed)
        _save_decoder(building / "decoder", seed)
        (building / STAMP).write_text(json.dumps(wanted) + "\n", encoding="utf-8")
        for part in REPOSITORIES:
            if (folder / part).exists():  # of a run killed between these renames
                shutil.rmtree(folder / part)
            (building / part).rename(folder / part)
        (building / STAMP).rename(stamp)


def _save_prior(folder: Path, captions: Sequence[str], seed: int) -> None:
    tokenizer = pocket_tokenizer(captions)
    vision = models.pocket_vision(seed)
    mean, std = _embedding_statistics(vision, seed)
    pipeline = KandinskyV22PriorPipeline(
        prior=models.pocket_prior(seed, mean, std),
        image_encoder=vision,
        text_encoder=models.pocket_text_encoder(seed, tokenizer),
        tokenizer=tokenizer,
        scheduler=models.pocket_prior_scheduler(),
        image_processor=models.pocket_image_processor(),
    )
    pipeline.save_pretrained(folder)
    # transformers 5 saves tokenizer.json, which 4 and the published repository do not have
    shutil.rmtree(folder / "tokenizer")
    write_tokenizer_files(folder / "tokenizer", captions)


def _save_decoder(folder: Path, seed: int) -> None:
    pipeline = KandinskyV22Pipeline(
        unet=models.pocket_unet(seed),
        scheduler=models.pocket_decoder_scheduler(),
        movq=models.pocket_movq(seed),
    )
    pipeline.save_pretrained(folder)


@torch.no_grad()
def _embedding_statistics(
    vision: CLIPVisionModelWithProjection, seed: int, count: int = 64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (D,) of the embeddings of `count` random, smooth colour fields."""
    side = vision.config.image_size
    with models.seeded(seed, 6):
        colours = 1.8 * torch.randn(count, 3, 4, 4)
    pixels = F.interpolate(colours, size=(side, side), mode="bilinear")  # (count, 3, side, side)
    embeds = vision(pixels).image_embeds  # (count, D)
    return embeds.mean(dim=0), embeds.std(dim=0)
