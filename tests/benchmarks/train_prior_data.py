"""What `bench-train-prior` reads: models, pictures with captions, and a cache.

On the CPU `precompute` makes the cache of them; for the GPU its rows are random, of the right shapes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffusers import PriorTransformer
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from data_tools.cache.fields import Column, Field
from data_tools.cache.generation import publish
from data_tools.cache.manifest import NULL_PART, Cache
from data_tools.cache.plan import plan_source
from data_tools.cache.store import LocalStore
from data_tools.cache.writer import PartWriter
from tests.benchmarks import precompute_command as command
from tests.benchmarks import precompute_data as data
from tests.benchmarks import train_prior_models as models
from tests.benchmarks.cache_data import Numbered
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


def write_random_cache(root: Path, dim: int, lengths: Sequence[int]) -> None:
    """Columns image and text in float16; a sample for each length, the tokens of its caption."""
    fields = {
        "image": (Field("image_embeds", "float16", (dim,)),),
        "text": (
            Field("prompt_embeds", "float16", (dim,)),
            Field("text_encoder_hidden_states", "float16", ("n_tokens", dim)),
        ),
    }
    store, rng = LocalStore(root), np.random.default_rng(0)
    plan = plan_source(store, Numbered(len(lengths)), len(lengths))
    cache = Cache.open(store)
    for name, chosen in fields.items():
        about = Column(name, chosen, {"weights": {}}, {"hub": "nobody/nothing"}, {})
        cache.declare(about)
        for part, counts in ((plan[0].name, lengths), (NULL_PART, [2])):
            if part == NULL_PART and not about.has_null:
                continue
            writer = PartWriter(store, about, part)
            for index, count in enumerate(counts):
                shapes = [[count if dim == "n_tokens" else dim for dim in each.shape] for each in chosen]
                row = [rng.standard_normal(shape, dtype=np.float32).astype(np.float16) for shape in shapes]
                writer.add(index, f"{index:08d}", [{each.name: value for each, value in zip(chosen, row)}])
            writer.commit()
        publish(cache, about, plan)
