"""Model sets of `bench-train-prior`: two CLIP encoders and a prior, with random weights.

A set is written as the repository that `train-prior` starts from. FLOPs are counted by torch on meta tensors:
with attention in them, which its counter overlooks on the CPU.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import PriorTransformer
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks import precompute_models as models
from tests.pocket.models import pocket_prior_scheduler
from tests.pocket.tokenizer import MAX_LENGTH, VOCAB_SIZE, write_tokenizer_files
from train.prior_model import CausalPrior

ENCODERS = {
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "image_processor": ["transformers", "CLIPImageProcessor"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
TRAINED = {"prior": ["diffusers", "PriorTransformer"], "scheduler": ["diffusers", "UnCLIPScheduler"]}


@dataclass(frozen=True, eq=False)
class ModelSet:
    encoders: models.EncoderSet
    num_attention_heads: int
    num_layers: int
    attention_head_dim: int = 64

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self.encoders.vision["projection_dim"])

    def prior(self) -> PriorTransformer:
        """On the current default device."""
        prior = PriorTransformer(
            num_attention_heads=self.num_attention_heads,
            attention_head_dim=self.attention_head_dim,
            num_layers=self.num_layers,
            embedding_dim=self.dim,
        )
        with torch.no_grad():
            prior.positional_embedding.normal_(std=0.1)
            prior.prd_embedding.normal_(std=0.1)
            prior.clip_std.fill_(1.0)  # zeros in a model made from its config
        return prior.train()


PUBLISHED = ModelSet(models.PUBLISHED, num_attention_heads=32, num_layers=20)
# the published proportions of FLOPs, 1/260 of them: wide enough that a step is matrix products
PROPORTIONAL = ModelSet(
    replace(
        models.PROPORTIONAL,
        vision={"hidden_size": 256, "intermediate_size": 1208, "projection_dim": 192}
        | {"num_hidden_layers": 7, "num_attention_heads": 4, "image_size": 224, "patch_size": 14},
        text={"hidden_size": 192, "intermediate_size": 808, "projection_dim": 192, "num_hidden_layers": 5}
        | {"num_attention_heads": 3, "vocab_size": VOCAB_SIZE},
    ),
    num_attention_heads=5,
    num_layers=3,
)
# the cheapest that run
TINY = ModelSet(
    replace(models.TINY, text=models.TINY.text | {"hidden_size": 128}),
    num_attention_heads=2,
    num_layers=1,
    attention_head_dim=16,
)


def write_encoders(folder: Path, chosen: ModelSet, captions: Sequence[str]) -> None:
    """Into `folder`/prior, as `precompute` reads them."""
    models.write_models(folder, chosen.encoders, captions)
    write_index(folder / "prior", ENCODERS | TRAINED)


def write_prior(folder: Path, chosen: ModelSet, device: str = "cpu") -> None:
    """Prior and scheduler into `folder`/prior; weights are drawn on the device."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        chosen.prior().save_pretrained(folder / "prior" / "prior")
    pocket_prior_scheduler().save_pretrained(folder / "prior" / "scheduler")


def write_index(repo: Path, components: dict[str, list[str]]) -> None:
    index = {"_class_name": "KandinskyV22PriorPipeline", **components}
    (repo / "model_index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path, captions: Sequence[str]) -> None:
    write_tokenizer_files(folder / "prior" / "tokenizer", captions)


def flops(chosen: ModelSet) -> dict[str, int]:
    """FLOPs of one sample: text of 77 tokens, vision, and the prior's forward pass over 77 tokens."""
    encoders = models.flops(chosen.encoders)
    return {"text": encoders["text"], "vision": encoders["image"], "prior": _padded(chosen, backward=False)}


def online_flops(chosen: ModelSet) -> int:
    """Of a sample in the reference's step, which pads texts to 77 tokens."""
    counted = flops(chosen)
    return counted["text"] + counted["vision"] + _padded(chosen, backward=True)


def cached_flops(chosen: ModelSet, num_rows: int, num_draws: int) -> float:
    """Of a sample in `train-prior`'s step, in a batch whose longest text has `num_rows` tokens."""
    return float(np.polyval(_curve(chosen, num_draws), num_rows))


@cache
def _curve(chosen: ModelSet, num_draws: int) -> NDArray[np.float64]:
    """Coefficients; FLOPs are exactly quadratic in the number of tokens."""
    lengths = [1, 39, MAX_LENGTH]
    return np.polyfit(lengths, [_causal(chosen, each, num_draws) for each in lengths], 2)


def _causal(chosen: ModelSet, num_rows: int, num_draws: int) -> int:
    with torch.device("meta"):
        module = CausalPrior(chosen.prior())
        given = (
            torch.zeros(num_draws, chosen.dim),
            torch.zeros(num_draws, dtype=torch.int64),
            torch.zeros(1, chosen.dim),
            torch.zeros(1, num_rows, chosen.dim),
            torch.zeros(1, dtype=torch.int64),
        )
        with mock.patch.object(torch, "is_autocast_enabled", return_value=False):  # torch asks no meta device
            return _count(lambda: module(*given).sum().backward())


def _padded(chosen: ModelSet, *, backward: bool) -> int:
    with torch.device("meta"):
        prior = chosen.prior()

        def forward() -> torch.Tensor:
            return prior(
                torch.zeros(1, chosen.dim),
                timestep=torch.zeros(1, dtype=torch.int64),
                proj_embedding=torch.zeros(1, chosen.dim),
                encoder_hidden_states=torch.zeros(1, MAX_LENGTH, chosen.dim),
                attention_mask=torch.ones(1, MAX_LENGTH, dtype=torch.bool),
            ).predicted_image_embedding

        return _count(lambda: forward().sum().backward()) if backward else _count(forward)


def _count(function: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())
