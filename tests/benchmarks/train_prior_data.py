"""What `bench-train-prior` reads: models, pictures with captions, and the cache that `precompute` makes of them."""

import json
from pathlib import Path

from diffusers import PriorTransformer
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from tests.benchmarks import precompute_command as command
from tests.benchmarks import precompute_data as data
from tests.benchmarks import train_prior_models as models
from tests.benchmarks.precompute_alternative import Processor
from tests.benchmarks.train_prior_sides import Online


def write(folder: Path, chosen: models.ModelSet, samples: int, side: int) -> None:
    """`folder`/models, /pictures (of side² pixels, at most 64 different files) and /cache."""
    texts = data.captions(samples)
    models.write_encoders(folder / "models", chosen, texts)
    models.write_prior(folder / "models", chosen)
    data.write_data(folder / "pictures", texts, distinct=min(64, samples), side=side)
    place = (folder / "pictures", folder / "models", folder / "cache")
    said = command.run(command.arguments(*place, ("image", "text"), "--device", "cpu"))
    assert said["cached"] == samples, said


def online(folder: Path, pictures: Path, *, num_preloaded: int) -> Online:
    """The reference's side, of the models in `folder` and the captions beside the pictures."""
    repo = folder / "prior"
    lines = (pictures / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return Online.of(
        PriorTransformer.from_pretrained(repo / "prior"),
        CLIPVisionModelWithProjection.from_pretrained(repo / "image_encoder"),
        CLIPTextModelWithProjection.from_pretrained(repo / "text_encoder"),
        CLIPTokenizer.from_pretrained(repo / "tokenizer"),
        Processor.from_pretrained(repo / "image_processor"),
        [row["text"] for row in rows],
        [pictures / row["file_name"] for row in rows],
        num_preloaded=num_preloaded,
    )
